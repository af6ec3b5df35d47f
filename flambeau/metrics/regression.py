"""Errors of numbers: absolute, squared, relative, and the share of the variance that is explained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from flambeau.metrics.base import MergeableMetric, RatioMetric, wide_dtype
from flambeau.registry import register


class _ErrorMetric(RatioMetric):
    """A mean over all elements of something of (outputs - targets), both of one shape."""

    higher_is_better = False

    def update(self, outputs: Any, targets: Any) -> None:
        outputs, targets = _widened(*self.select(outputs, targets))
        self.add(self._total(outputs - targets, targets), targets.numel())

    def _total(self, difference: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError


@register.metric("mean_absolute_error")
class MeanAbsoluteError(_ErrorMetric):
    """Mean of |outputs - targets| over all elements.

    Args:
        output: the key of the output, if outputs are a dict.
        target: the key of the target, if targets are a dict.
    """

    def _total(self, difference: Tensor, targets: Tensor) -> Tensor:
        return difference.abs().sum()


@register.metric("mean_squared_error")
class MeanSquaredError(_ErrorMetric):
    """Mean of (outputs - targets)² over all elements.

    Args:
        output: the key of the output, if outputs are a dict.
        target: the key of the target, if targets are a dict.
    """

    def _total(self, difference: Tensor, targets: Tensor) -> Tensor:
        return difference.square().sum()


@register.metric("root_mean_squared_error")
class RootMeanSquaredError(MeanSquaredError):
    """Square root of the mean of (outputs - targets)² over all elements of the data set.

    Args:
        output: the key of the output, if outputs are a dict.
        target: the key of the target, if targets are a dict.
    """

    def compute(self) -> Tensor:
        return super().compute().sqrt()


@register.metric("mean_absolute_percentage_error")
class MeanAbsolutePercentageError(_ErrorMetric):
    """Mean of |outputs - targets| / |targets| over all elements, as a share: 0.1 is 10 %.

    A target of 0 counts as 2.2e-16, as in scikit-learn: one such target makes the score useless, and shows it.

    Args:
        output: the key of the output, if outputs are a dict.
        target: the key of the target, if targets are a dict.
    """

    def _total(self, difference: Tensor, targets: Tensor) -> Tensor:
        return (difference.abs() / targets.abs().clamp_min(torch.finfo(torch.float64).eps)).sum()


@register.metric("r2_score")
class R2Score(MergeableMetric):
    """Share of the targets' variance that the outputs explain: 1 - squared errors / squared deviations from the mean.

    1 is perfect, 0 as good as the mean of these targets, and there is no worst. Of targets with several numbers, the
    mean over the numbers. The squared deviations are put together by the method of Chan, Golub and LeVeque (1983, eq.
    2.1), which keeps its precision where the mean is large. Targets that are all equal have a score of 1 if they are
    met and 0 if not; of fewer than two targets it is nan.

    Args:
        output: the key of the output, if outputs are a dict.
        target: the key of the target, if targets are a dict.
    """

    higher_is_better = True

    def __init__(self, *, output: str | None = None, target: str | None = None) -> None:
        super().__init__(output=output, target=target)
        self._state: dict[str, Tensor] = {}

    def update(self, outputs: Any, targets: Any) -> None:
        outputs, targets = (values.flatten(1) if values.ndim > 1 else values[:, None]
                            for values in _widened(*self.select(outputs, targets)))  # fmt: skip
        if not len(targets):
            return
        mean = targets.mean(0)
        self.merge_state(
            {
                "count": torch.tensor(len(targets)),
                "errors": (outputs - targets).square().sum(0),
                "mean": mean,
                "deviations": (targets - mean).square().sum(0),
            }
        )

    def merge_state(self, state: Mapping[str, Tensor]) -> None:
        if not state or not self._state:
            self._state = dict(state) or self._state
            return
        one, other = self._state, state
        count = one["count"] + other["count"]
        difference = other["mean"] - one["mean"]
        share = float(other["count"]) / float(count)
        self._state = {
            "count": count,
            "errors": one["errors"] + other["errors"],
            "mean": one["mean"] + difference * share,
            "deviations": one["deviations"] + other["deviations"] + difference.square() * (float(one["count"]) * share),
        }

    def compute(self) -> Tensor:
        if not self._state or self._state["count"] < 2:
            return torch.tensor(torch.nan)
        errors, deviations = self._state["errors"], self._state["deviations"]
        constant = torch.where(errors == 0, 1.0, 0.0).to(errors.dtype)
        return torch.where(deviations == 0, constant, 1 - errors / deviations).mean()

    def reset(self) -> None:
        self._state = {}

    def to(self, device: torch.device | str) -> Self:
        self._state = {name: value if name == "count" else value.to(device) for name, value in self._state.items()}
        return self

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._state.items()}


def _widened(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, so that no sum depends on how the data was cut into batches."""
    if outputs.shape != targets.shape:
        raise ValueError(f"outputs of shape {tuple(outputs.shape)} do not fit targets of shape {tuple(targets.shape)}")
    wide = wide_dtype(outputs.device)
    return outputs.detach().to(wide), targets.to(wide)
