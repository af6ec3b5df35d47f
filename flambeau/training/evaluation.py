"""Measuring a model on a data set, each sample once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from flambeau.criterions import weigh
from flambeau.data import Batch
from flambeau.metrics import Metric, metric_values

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


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    step: EvaluationStep,
    metrics: Mapping[str, Metric],
    *,
    limit: int | None = None,
) -> dict[str, float]:
    """The mean loss and the metrics of `model` over `batches`.

    The loss is weighted by units and summed in float64, so neither the batch size nor a smaller last batch changes it.
    The model is in evaluation mode meanwhile, each of its modules as it was before afterwards.

    Args:
        limit: measure this many batches only.

    Returns:
        `loss` (if `step` gives one) and each metric by its label; a metric that gives a dict adds `label/key`, one that
        gives several numbers `label/0`, `label/1`, ...
    """
    for metric in metrics.values():
        metric.reset()
    loss_sum: Any = 0.0
    units_sum: Any = 0.0
    with evaluation_mode(model):
        for number, batch in enumerate(batches):
            if limit is not None and number >= limit:
                break
            outputs, loss, units = step(model, batch)
            if loss is not None:
                loss_sum = loss_sum + weigh(loss.double(), units)
                units_sum = units_sum + units
            for metric in metrics.values():
                metric.update(outputs, batch.targets)
    scores: dict[str, float] = {}
    if isinstance(loss_sum, torch.Tensor):
        scores["loss"] = float(loss_sum) / float(units_sum) if float(units_sum) else float("nan")
    scores.update(metric_values(metrics))
    return scores
