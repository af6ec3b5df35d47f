"""Metrics of other libraries, torchmetrics' first of all, and the values that any metric computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from flambeau.errors import UsageError

_METHODS = ("update", "compute", "reset")


def prepare_metric(label: str, metric: Any) -> Any:
    """The metric itself, made sure to be one and to save what it has counted so far.

    torchmetrics leaves its counts out of `state_dict` unless told otherwise; a run that resumes in the middle
    of counting needs them.

    Raises:
        UsageError: it lacks `update`, `compute` or `reset`.
    """
    missing = [name for name in _METHODS if not callable(getattr(metric, name, None))]
    if missing:
        raise UsageError(
            f"the metric {label!r} ({type(metric).__name__}) has no method {', '.join(missing)}",
            remedy="a metric has update(outputs, targets), compute() and reset()",
        )
    persistent = getattr(metric, "persistent", None)
    if callable(persistent):
        persistent(mode=True)
    return metric


def metric_values(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What all metrics compute, as numbers by label; waits for the device.

    A metric that computes a dict gives one value an entry, `label/key`; one that computes a tensor of several
    numbers (a class each, say) gives `label/0`, `label/1`, ...
    """
    values: dict[str, float] = {}
    for label, metric in metrics.items():
        _flatten(label, metric.compute(), values)
    return values


def _flatten(label: str, value: Any, into: dict[str, float]) -> None:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _flatten(f"{label}/{key}", entry, into)
    elif isinstance(value, Tensor) and value.ndim > 0:
        for index, entry in enumerate(value.flatten().tolist()):
            into[f"{label}/{index}"] = float(entry)
    else:
        into[label] = float(value)
