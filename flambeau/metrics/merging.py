"""A metric over several processes: each counts its own batches, and the counts are put together.

The batches of an evaluation are numbered, and each process has some of them. Three kinds of metrics:

- built-in ones (`MergeableMetric`): the state of each batch is merged in the order of the batches, so that the score
  has the same bits at any number of processes;
- torchmetrics whose states are sums, maxima, minima or lists: their states are merged in the order of the processes;
- all others: every process gets all outputs and targets, and updates with them in the order of the batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flambeau.distributed.messages import gather_state
from flambeau.metrics.base import MergeableMetric
from flambeau.runtime.world import World


class MergedMetrics:
    """The metrics of one evaluation in several processes; after `merge` every process has all that was counted.

    Args:
        metrics: by label, reset.
    """

    def __init__(self, metrics: Mapping[str, Any], world: World) -> None:
        self._world = world
        self._own = {label: metric for label, metric in metrics.items() if isinstance(metric, MergeableMetric)}
        rest = {label: metric for label, metric in metrics.items() if label not in self._own}
        self._stateful = {label: metric for label, metric in rest.items() if _merges(metric)}
        self._replayed = {label: metric for label, metric in rest.items() if label not in self._stateful}
        for metric in rest.values():
            if hasattr(metric, "sync_on_compute"):  # what is merged here must not be reduced again
                metric.sync_on_compute = metric._to_sync = False
        self._batches: list[tuple[int, dict[str, Any], Any]] = []

    def update(self, number: int, outputs: Any, targets: Any) -> None:
        """Take in batch `number` of the evaluation."""
        states = {}
        for label, metric in self._own.items():
            metric.reset()
            metric.update(outputs, targets)
            states[label] = metric.state_dict()
        for metric in self._stateful.values():
            metric.update(outputs, targets)
        self._batches.append((number, states, (outputs, targets) if self._replayed else None))

    def merge(self) -> None:
        """Put together what all processes have counted."""
        states = {label: metric.metric_state for label, metric in self._stateful.items()}
        counted = {label: metric.update_count for label, metric in self._stateful.items()}
        of_ranks = gather_state(self._world, [self._batches, states, counted])
        batches = sorted((batch for rank in of_ranks for batch in rank[0]), key=lambda batch: batch[0])
        for label, own in self._own.items():
            device = _device_of(own)
            own.reset()
            for _, of_batch, _ in batches:
                own.merge_state(of_batch[label])
            own.to(device)
        for label, metric in self._stateful.items():
            _merge_states(metric, [rank[1][label] for rank in of_ranks], sum(rank[2][label] for rank in of_ranks))
        for metric in self._replayed.values():
            for _, _, (outputs, targets) in batches:
                metric.update(outputs, targets)


def _device_of(metric: MergeableMetric) -> torch.device:
    state = metric.state_dict()
    return next(iter(state.values())).device if state else torch.device("cpu")


def _merges(metric: Any) -> bool:
    """Whether a torchmetrics metric says of each of its states how parts are put together."""
    reductions = getattr(metric, "_reductions", None)
    if not isinstance(reductions, dict) or not hasattr(metric, "metric_state"):
        return False
    nested = any(hasattr(child, "_reductions") for child in metric.children())
    return not nested and all(_name_of(reduction) in _MERGES for reduction in reductions.values())


def _name_of(reduction: Any) -> str:
    return getattr(reduction, "__name__", "")


def _merge_states(metric: Any, states: Sequence[Mapping[str, Any]], updates: int) -> None:
    for name, reduction in metric._reductions.items():
        merged = _MERGES[_name_of(reduction)]([state[name] for state in states])
        setattr(metric, name, _on(metric.device, merged))
    metric._update_count = updates
    metric._computed = None


def _on(device: torch.device, value: Any) -> Any:
    return [item.to(device) for item in value] if isinstance(value, list) else value.to(device)


def _sum(values: Sequence[Any]) -> Any:
    return torch.stack(list(values)).sum(0)


def _extreme(values: Sequence[Tensor], *, largest: bool) -> Tensor:
    stacked = torch.stack(list(values))
    return stacked.amax(0) if largest else stacked.amin(0)


def _chain(values: Sequence[Any]) -> list[Tensor]:
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


_MERGES: dict[str, Callable[[Sequence[Any]], Any]] = {
    "dim_zero_sum": _sum,
    "dim_zero_cat": _chain,
    "dim_zero_max": lambda values: _extreme(values, largest=True),
    "dim_zero_min": lambda values: _extreme(values, largest=False),
}
"""How parts of a state are put together, by the name of torchmetrics' function for it."""
