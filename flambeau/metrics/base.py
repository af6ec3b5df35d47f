"""What a metric is, and the form that most built-in ones have: a sum over a count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor


class Metric:
    """A score over a data set: `update` with each batch, `compute` at the end, `reset` before the next.

    Nobody has to inherit from this class: any object with these three methods is a metric,
    torchmetrics' among them.

    Args:
        output: for models that return a dict: the key of the output to look at.
        target: for targets that are a dict: the key of the target to compare with.
    """

    higher_is_better: bool | None = None
    """Which direction is an improvement; None if neither is."""

    def __init__(self, *, output: str | None = None, target: str | None = None) -> None:
        self.output = output
        self.target = target

    def select(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """The two tensors that this metric compares."""
        return _pick("output", outputs, self.output), _pick("target", targets, self.target)

    def update(self, outputs: Any, targets: Any) -> None:
        """Take in one batch; without waiting for the device."""
        raise NotImplementedError

    def compute(self) -> Tensor | dict[str, Tensor]:
        """The score over all batches since the last `reset`."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget all batches."""
        raise NotImplementedError

    def to(self, device: torch.device | str) -> Self:
        """Move what has been counted to a device; nothing, where that is kept in numbers."""
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """What has been counted, as tensors that add up over parts of the data."""
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state_dict`."""
        raise NotImplementedError


class MergeableMetric(Metric):
    """A metric whose states over parts of the data can be put together: `merge_state(state_dict of another part)`.

    Of several processes each then counts its own batches, and their states are merged in the order of the batches.
    """

    def merge_state(self, state: Mapping[str, Tensor]) -> None:
        """Add what another metric of this kind has counted, from its `state_dict`; an empty one adds nothing."""
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.reset()
        self.merge_state(state)


class RatioMetric(MergeableMetric):
    """A sum divided by a count, both exact: int64 and float64, so that no batch size changes the result.

    A subclass calls `add` from its `update`. The score of no data at all is nan.
    """

    def __init__(self, *, output: str | None = None, target: str | None = None) -> None:
        super().__init__(output=output, target=target)
        self._sum: Tensor | None = None  # made by the first batch, on its device
        self._count: int | Tensor = 0

    def add(self, value: Tensor, count: int | Tensor) -> None:
        """Add a sum over some of the data (0-dimensional, int64 or float64), and how much data that was."""
        if self._sum is None:
            self._sum = value.detach().clone()
        else:
            self._sum += value.detach()
        self._count = self._count + count

    def compute(self) -> Tensor:
        if self._sum is None:
            return torch.tensor(torch.nan)
        return self._sum.to(wide_dtype(self._sum.device)) / self._count

    def reset(self) -> None:
        self._sum = None
        self._count = 0

    def to(self, device: torch.device | str) -> Self:
        if self._sum is not None:
            self._sum = self._sum.to(device)
        if isinstance(self._count, Tensor):
            self._count = self._count.to(device)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        if self._sum is None:
            return {}
        return {"sum": self._sum.clone(), "count": torch.as_tensor(self._count).clone()}

    def merge_state(self, state: Mapping[str, Tensor]) -> None:
        if state:
            count = state["count"]
            on_host = count.device.type == "cpu" and not count.is_floating_point()
            self.add(state["sum"], int(count) if on_host else count)


def wide_dtype(device: torch.device) -> torch.dtype:
    """The widest floating type of a device: float64, or float32 on Apple's GPUs, which have no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def _pick(what: str, value: Any, key: str | None) -> Tensor:
    if key is not None:
        if not isinstance(value, Mapping) or key not in value:
            has = f"a dict of {', '.join(map(repr, value))}" if isinstance(value, Mapping) else "no dict"
            raise KeyError(f"a metric needs the {what} {key!r} and got {has}")
        picked = value[key]
    elif isinstance(value, Mapping):
        if len(value) != 1:
            raise KeyError(
                f"a metric needs one {what} and got a dict of {', '.join(map(repr, value))}; "
                f"name one with the metric's argument `{what}`"
            )
        picked = next(iter(value.values()))
    else:
        picked = value
    if not isinstance(picked, Tensor):
        raise TypeError(f"a metric needs a tensor as its {what} and got {type(picked).__name__}")
    return picked
