"""Soft Dice loss for segmentation."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F

from flambeau.registry import register


@register.criterion("dice")
class Dice(nn.Module):
    """Soft Dice loss and cross entropy of logits (N, C, ...) and classes (N, ...), the mean over images.

    The loss of an image is 1 - mean over the C classes of (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth), with
    the softmax p of the logits, the targets t as 0 and 1, and sums over its pixels (Milletari et al., 2016, without the
    squares); and, beside it, the mean cross entropy of its pixels times `cross_entropy`. Both are means over images, so
    that accumulation and distribution weigh them alike; plain `cross_entropy` is a mean over pixels.

    Args:
        cross_entropy: factor of the cross entropy; 0 leaves it out.
        smooth: keeps a class that neither is in an image nor is predicted from counting as missed.
        ignore_index: pixels of this target count for nothing, in either term; an image of nothing else neither.

    The log has both terms, as `dice` and `cross_entropy`.
    """

    def __init__(
        self,
        cross_entropy: Annotated[float, Ge(0)] = 1.0,
        smooth: Annotated[float, Gt(0)] = 1.0,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        self.cross_entropy = cross_entropy
        self.smooth = smooth
        self.ignore_index = ignore_index

    def forward(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if outputs.ndim < 3 or targets.shape != outputs.shape[:1] + outputs.shape[2:]:
            raise ValueError(
                f"outputs of shape {tuple(outputs.shape)} do not fit targets of shape {tuple(targets.shape)}"
            )
        logits, targets = outputs.flatten(2).movedim(1, -1), targets.flatten(1)  # (N, P, C) and (N, P)
        counted = self._counted(targets)
        classes = targets.masked_fill(~counted, 0)
        log_p = logits.float().log_softmax(-1) if logits.element_size() < 4 else logits.log_softmax(-1)
        mask = counted.to(log_p.dtype)
        p = log_p.exp() * mask[..., None]
        t = F.one_hot(classes, logits.shape[-1]) * mask[..., None]
        overlap, total = (p * t).sum(1), (p + t).sum(1)  # (N, C)
        dice = 1 - ((2 * overlap + self.smooth) / (total + self.smooth)).mean(1)
        pixels = mask.sum(1)
        # By the mask: in CUDA a look-up of each pixel's class has no deterministic gradient.
        cross_entropy = -(log_p * t).sum((1, 2)) / pixels.clamp_min(1)
        images = (pixels > 0).to(log_p.dtype)
        parts = {"dice": _mean(dice, images), "cross_entropy": _mean(cross_entropy, images)}
        return parts["dice"] + self.cross_entropy * parts["cross_entropy"], {k: v.detach() for k, v in parts.items()}

    def units(self, targets: Tensor) -> int | Tensor:
        """Images with a pixel that counts."""
        return len(targets) if self.ignore_index is None else self._counted(targets.flatten(1)).any(1).sum()

    def _counted(self, targets: Tensor) -> Tensor:
        return targets == targets if self.ignore_index is None else targets != self.ignore_index


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """The mean of the values with weight 1; 0 where none has: 0 / 0 would have no gradient to weigh by nothing."""
    return (values * weights).sum() / weights.sum().clamp_min(1)
