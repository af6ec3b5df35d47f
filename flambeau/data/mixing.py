"""Transforms that mix the samples of a batch: mixup and CutMix.

Samples 2k and 2k + 1 of the global batch are mixed with each other, whose order is random already; how much, is a
function of the sample. So a sample's partner does not depend on the number of processes, as long as both are with the
same one: where a process's share begins or ends within a pair, the cut pair's samples stay as they are, at most two a
process and step. A `batch_size` that is a multiple of twice the processes has none, but for the last batch of an epoch.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor
from torch.nn.functional import one_hot

from flambeau.data.batch import Batch
from flambeau.data.image_transforms import rectangles
from flambeau.errors import UsageError
from flambeau.registry import register


class Mixing:
    """What mixing needs: partners, shares, targets; a subclass says how inputs are mixed."""

    name = ""

    def __init__(
        self,
        num_classes: Annotated[int, Ge(1)],
        alpha: Annotated[float, Gt(0)] = 0.2,
        p: Annotated[float, Interval(ge=0, le=1)] = 1.0,
    ) -> None:
        self.num_classes = num_classes
        self.alpha = alpha
        self.p = p

    def mixed(self, batch: Batch, inputs: Tensor, others: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """The mixed inputs, and the share of each sample that is left of itself."""
        raise NotImplementedError

    def on_batch(self, batch: Batch) -> Batch:
        """Mix the inputs; targets become probabilities (N, num_classes), which cross entropy takes."""
        inputs, targets = batch.inputs, self._probabilities(batch.targets, batch.inputs)
        partners = self._partners(batch).to(inputs.device)
        share = batch.random_beta(self.alpha, purpose="share").to(inputs.device)
        kept = batch.random(purpose="p").to(inputs.device) >= self.p
        share = torch.where(kept | (partners == torch.arange(len(inputs), device=inputs.device)), 1.0, share)
        mixed, share = self.mixed(batch, inputs, inputs.index_select(0, partners), share)
        own = share.to(targets.dtype)[:, None]
        return batch.replace(inputs=mixed, targets=own * targets + (1 - own) * targets.index_select(0, partners))

    def _partners(self, batch: Batch) -> Tensor:
        """The row of each row's partner: its own where the partner is not here."""
        rows = torch.arange(max(batch.size, 1))
        partners = ((rows + batch.start) ^ 1) - batch.start
        return torch.where((partners >= 0) & (partners < batch.size), partners, rows)

    def _probabilities(self, targets: Any, inputs: Any) -> Tensor:
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            raise UsageError(
                f"{self.name} takes inputs that are one floating-point tensor",
                remedy="say with `on` which entry they are; bytes are to be normalised before",
            )
        if isinstance(targets, Tensor) and targets.dim() == 1 and targets.dtype == torch.int64:
            on_host = targets.device.type == "cpu"  # an accelerator would have to be waited for; it checks by itself
            if on_host and targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < self.num_classes:
                raise UsageError(f"{self.name}: a target lies outside of {self.num_classes} classes")
            return one_hot(targets, self.num_classes).to(inputs.dtype)
        if isinstance(targets, Tensor) and targets.dim() == 2 and targets.is_floating_point():
            return targets
        raise UsageError(
            f"{self.name} takes class indices, int64 (N,), or probabilities (N, num_classes) as targets",
            remedy=f"leave {self.name} out, or mix the targets in a transform of your own",
        )


@register.transform("mixup")
class Mixup(Mixing):
    """Convex combinations of pairs of samples (Zhang et al., "mixup", 2018), for `train_batch_transforms`.

    Args:
        num_classes: classes; targets become probabilities of them.
        alpha: the share of a sample is from Beta(alpha, alpha); small values leave most samples nearly as they are.
        p: probability that a sample is mixed.
    """

    name = "mixup"

    def mixed(self, batch: Batch, inputs: Tensor, others: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        own = share.to(inputs.dtype).view(-1, *[1] * (inputs.dim() - 1))
        return own * inputs + (1 - own) * others, share


@register.transform("cutmix")
class CutMix(Mixing):
    """A rectangle of each image comes from another (Yun et al., "CutMix", 2019), for `train_batch_transforms`.

    Args:
        num_classes: classes; targets become probabilities of them, by area.
        alpha: the share of a sample is from Beta(alpha, alpha).
        p: probability that a sample is mixed.

    The rectangle has the image's proportions and lies within it.
    """

    name = "cutmix"

    def __init__(
        self,
        num_classes: Annotated[int, Ge(1)],
        alpha: Annotated[float, Gt(0)] = 1.0,
        p: Annotated[float, Interval(ge=0, le=1)] = 1.0,
    ) -> None:
        super().__init__(num_classes, alpha, p)

    def mixed(self, batch: Batch, inputs: Tensor, others: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        if inputs.dim() < 3:
            raise UsageError(f"cutmix takes images (N, C, H, W), and was given shape {tuple(inputs.shape)}")
        height, width = inputs.shape[-2:]
        side = torch.sqrt(1 - share)
        rows, columns = (side * height).round(), (side * width).round()
        places = batch.random(2, purpose="place").to(device=inputs.device, dtype=torch.float64)
        inside = rectangles(places, rows, columns, height, width)
        inside = inside.view(len(inputs), *[1] * (inputs.dim() - 3), height, width)
        return torch.where(inside, others, inputs), 1 - rows * columns / (height * width)
