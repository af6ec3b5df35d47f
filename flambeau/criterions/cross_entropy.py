"""Cross entropy between logits and classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Interval
from torch import nn

from flambeau.registry import register

_NO_CLASS = torch.iinfo(torch.int64).min
"""Stands for "nothing is ignored" where torch wants a number: no target has it."""


@register.criterion("cross_entropy")
class CrossEntropy(nn.CrossEntropyLoss):
    """Mean cross entropy of logits (N, C, ...) and targets: classes (N, ...) or probabilities (N, C, ...).

    As `torch.nn.CrossEntropyLoss`, except that no target is ignored unless asked: -100, which torch passes
    over in silence, is an error here like any other class that does not exist.

    Args:
        label_smoothing: share of the probability that is spread evenly over all classes
            (Szegedy et al., 2016, section 7).
        ignore_index: targets of this value count for nothing, neither in the sum nor in the mean.
        weight: one factor a class; the mean is then divided by the sum of its targets' factors.
    """

    def __init__(
        self,
        label_smoothing: Annotated[float, Interval(ge=0, le=1)] = 0.0,
        ignore_index: int | None = None,
        weight: Sequence[float] | None = None,
    ) -> None:
        super().__init__(
            weight=None if weight is None else torch.as_tensor(weight, dtype=torch.get_default_dtype()),
            ignore_index=_NO_CLASS if ignore_index is None else ignore_index,
            label_smoothing=label_smoothing,
        )
        self.ignores = ignore_index is not None
        """Whether targets can be passed over; if not, units are counted without looking at the targets."""

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if input.ndim > 2 and target.ndim == input.ndim - 1:
            # One row a position: the same mean. CUDA's kernel for (N, C, ...) has no deterministic form.
            input, target = input.movedim(1, -1).flatten(0, -2), target.flatten()
        return super().forward(input, target)
