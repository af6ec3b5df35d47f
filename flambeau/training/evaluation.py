"""Measuring a model on a data set, each sample once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch import nn

from flambeau.criterions import weigh
from flambeau.data import Batch
from flambeau.distributed.in_step import in_step
from flambeau.distributed.sharding import is_sharded_model, reshard
from flambeau.metrics import Metric, metric_values
from flambeau.metrics.merging import MergedMetrics
from flambeau.runtime.world import World
from flambeau.training.running_means import numbers_of

EvaluationStep = Callable[[nn.Module, Batch], tuple[Any, "torch.Tensor | None", "int | torch.Tensor"]]
"""Gives the outputs of a batch, its loss (or None) and the units that the loss is a mean over."""


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """`model` in evaluation mode, and each of its modules as it was afterwards: frozen ones stay as they are."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _called(model: nn.Module, batches: Iterable[Batch], world: World | None) -> Iterator[Batch]:
    """The batches to call a model with: one that lies in pieces is called by all processes equally often."""
    if world is None or not is_sharded_model(model):
        yield from batches
        return
    yield from in_step(batches, world, next(model.parameters()).device)
    reshard(model)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    step: EvaluationStep,
    metrics: Mapping[str, Metric],
    *,
    limit: int | None = None,
    world: World | None = None,
) -> dict[str, float]:
    """The mean loss and the metrics of `model` over `batches`.

    The loss is weighted by units and summed in float64, so neither the batch size nor a smaller last batch changes it.
    The model is in evaluation mode meanwhile, each of its modules as it was before afterwards.

    Args:
        limit: measure this many batches only.
        world: the processes, each of which has some of the batches (`Batch.number` says which) and gets the scores of
            all. The loss is added up in the order of the batches: the same bits at any number of processes.

    Returns:
        `loss` (if `step` gives one) and each metric by its label; a metric that gives a dict adds `label/key`, one that
        gives several numbers `label/0`, `label/1`, ...
    """
    for metric in metrics.values():
        metric.reset()
    merged = MergedMetrics(metrics, world) if world is not None and world.size > 1 else None
    losses: list[tuple[int, torch.Tensor, Any]] = []
    with evaluation_mode(model):
        for batch in _called(model, takewhile(lambda batch: limit is None or batch.number < limit, batches), world):
            outputs, loss, units = step(model, batch)
            if not batch.size:  # borrowed
                continue
            if loss is not None:
                losses.append((batch.number, weigh(loss.double(), units), units))
            if merged is not None:
                merged.update(batch.number, outputs, batch.targets)
            else:
                for metric in metrics.values():
                    metric.update(outputs, batch.targets)
    numbers, values, units_of_batches = zip(*losses, strict=True) if losses else ((), (), ())
    sums = list(zip(numbers, numbers_of(values), numbers_of(units_of_batches), strict=True))
    if merged is not None and world is not None:
        merged.merge()
        sums = sorted(tuple(entry) for entries in world.gather(sums) for entry in entries)
    scores: dict[str, float] = {}
    if sums:
        total = sum(units for _, _, units in sums)
        scores["loss"] = sum(loss for _, loss, _ in sums) / total if total else float("nan")
    scores.update(metric_values(metrics))
    return scores
