"""Scores of images against images."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from flambeau.metrics.regression import MeanSquaredError
from flambeau.registry import register


@register.metric("psnr")
class PSNR(MeanSquaredError):
    """Peak signal-to-noise ratio in decibels: 10 log10(data_range² / mean squared error).

    The mean runs over all elements of the data set, so the score is that of the whole set seen as one image. The mean
    of the images' own ratios, which some report, is another number, and infinite as soon as one image is met exactly.

    Args:
        data_range: difference between the largest and the smallest value that a target can have.
        output: the key of the output, if outputs are a dict.
        target: the key of the target, if targets are a dict.
    """

    higher_is_better = True

    def __init__(
        self, data_range: Annotated[float, Gt(0)] = 1.0, *, output: str | None = None, target: str | None = None
    ) -> None:
        super().__init__(output=output, target=target)
        self.data_range = data_range

    def compute(self) -> Tensor:
        return 10 * (self.data_range**2 / super().compute()).log10()
