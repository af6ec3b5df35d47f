"""Errors of numbers: absolute and squared."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flambeau.metrics.base import RatioMetric, wide_dtype
from flambeau.registry import register


class _ErrorMetric(RatioMetric):
    """A mean over all elements of something of (outputs - targets), both of one shape."""

    higher_is_better = False

    def update(self, outputs: Any, targets: Any) -> None:
        outputs, targets = self.select(outputs, targets)
        if outputs.shape != targets.shape:
            raise ValueError(
                f"outputs of shape {tuple(outputs.shape)} do not fit targets of shape {tuple(targets.shape)}"
            )
        # Widened before subtracting: the sum then does not depend on how the data was cut into batches.
        wide = wide_dtype(outputs.device)
        difference = outputs.detach().to(wide) - targets.to(wide)
        self.add(self._total(difference), difference.numel())

    def _total(self, difference: Tensor) -> Tensor:
        raise NotImplementedError


@register.metric("mean_absolute_error")
class MeanAbsoluteError(_ErrorMetric):
    """Mean of |outputs - targets| over all elements.

    Args:
        output: the key of the output, if outputs are a dict.
        target: the key of the target, if targets are a dict.
    """

    def _total(self, difference: Tensor) -> Tensor:
        return difference.abs().sum()


@register.metric("mean_squared_error")
class MeanSquaredError(_ErrorMetric):
    """Mean of (outputs - targets)² over all elements.

    Args:
        output: the key of the output, if outputs are a dict.
        target: the key of the target, if targets are a dict.
    """

    def _total(self, difference: Tensor) -> Tensor:
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
