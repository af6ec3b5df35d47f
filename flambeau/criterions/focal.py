"""Focal loss: cross entropy in which what is right already counts little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn
from torch.nn import functional as F

from flambeau.criterions.units import Units
from flambeau.registry import register


@register.criterion("focal_loss")
class FocalLoss(nn.Module):
    """Mean of -alpha_t (1 - p_t)^gamma log p_t over targets (Lin et al., 2017, eq. 5), of logits (N, C, ...).

    p_t is the softmax's probability of the target, a class (N, ...). With gamma 0 and no weights it is cross entropy.
    The mean is over all targets that are not ignored, whatever their weights.

    Args:
        gamma: how little the easy ones count.
        alpha: one factor a class; null: all 1.
        ignore_index: targets of this value count for nothing.
    """

    def __init__(
        self,
        gamma: Annotated[float, Ge(0)] = 2.0,
        alpha: Sequence[float] | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self.ignore_index = ignore_index
        weights = None if alpha is None else torch.as_tensor(alpha, dtype=torch.get_default_dtype())
        self.alpha: Tensor | None
        self.register_buffer("alpha", weights)

    def units(self, targets: Tensor) -> Units:
        """Targets that the mean is over."""
        return targets.numel() if self.ignore_index is None else (targets != self.ignore_index).sum()

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        rows, classes = outputs.movedim(1, -1).flatten(0, -2), targets.flatten()
        counted = None if self.ignore_index is None else classes != self.ignore_index
        if counted is not None:
            classes = classes.masked_fill(~counted, 0)
        log_p = -F.cross_entropy(rows, classes, reduction="none")
        losses = -_focus(log_p, self.gamma) * log_p
        if self.alpha is not None:
            losses = losses * self.alpha[classes]
        if counted is None:
            return losses.mean()
        return losses.masked_fill(~counted, 0.0).sum() / counted.sum()


@register.criterion("sigmoid_focal_loss")
class SigmoidFocalLoss(nn.Module):
    """The focal loss of independent yes-or-no labels (Lin et al., 2017, eq. 5), of logits and targets of one shape.

    The mean is over all elements; targets are 0 or 1, floating or not.

    Args:
        gamma: how little the easy ones count.
        alpha: factor of the ones, 1 - alpha being that of the zeros; null: both 1.
    """

    def __init__(
        self, gamma: Annotated[float, Ge(0)] = 2.0, alpha: Annotated[float, Interval(ge=0, le=1)] | None = 0.25
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self.alpha = alpha

    def units(self, targets: Tensor) -> int:
        """Elements that the mean is over."""
        return targets.numel()

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.shape != targets.shape:
            raise ValueError(
                f"outputs of shape {tuple(outputs.shape)} do not fit targets of shape {tuple(targets.shape)}"
            )
        ones = targets.to(outputs.dtype)
        log_p = -F.binary_cross_entropy_with_logits(outputs, ones, reduction="none")
        losses = -_focus(log_p, self.gamma) * log_p
        if self.alpha is not None:
            losses = losses * (self.alpha * ones + (1 - self.alpha) * (1 - ones))
        return losses.mean()


def _focus(log_p: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma; 0^0 is 1, and the gradient where p is 1 is 0 and not NaN for gamma below 1."""
    if gamma == 0:
        return torch.ones_like(log_p)
    return (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny) ** gamma
