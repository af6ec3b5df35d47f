"""U-Net (Ronneberger et al., 2015)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from flambeau.errors import UsageError
from flambeau.registry import register


@register.model("unet")
class UNet(nn.Module):
    """U-Net (Ronneberger et al., 2015): images (N, C, H, W) to logits of each pixel (N, num_classes, H, W).

    After fig. 1 of the paper: each level has two 3 x 3 convolutions; 2 x 2 maxima lead down, where channels double, and
    2 x 2 transposed convolutions up again, where the maps of the level are joined on. As is usual today, convolutions
    are padded, so that the logits have the image's size, and batch norm follows each. Where a side is odd, the way up
    is padded by a row or column of zeros.

    Args:
        num_classes: classes of a pixel.
        in_channels: channels of the images.
        depth: times that the image is halved; the paper has 4. Sides must be at least 2^depth pixels.
        width: channels of the first level; the paper has 64.
    """

    def __init__(
        self,
        num_classes: Annotated[int, Ge(1)] = 2,
        in_channels: Annotated[int, Ge(1)] = 1,
        depth: Annotated[int, Ge(1)] = 4,
        width: Annotated[int, Ge(1)] = 64,
    ) -> None:
        super().__init__()
        self.least = 2**depth
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            _two_convolutions(before, after) for before, after in zip([in_channels, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * narrow, narrow, 2, stride=2) for narrow in reversed(widths[:-1]))
        self.join = nn.ModuleList(_two_convolutions(2 * narrow, narrow) for narrow in reversed(widths[:-1]))
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        if min(images.shape[-2:]) < self.least:
            raise UsageError(
                f"images of {images.shape[-2]} x {images.shape[-1]} pixels cannot be halved {len(self.up)} times",
                remedy=f"use images of at least {self.least} x {self.least} pixels, or a smaller model.depth",
            )
        x, levels = self.down[0](images), []
        for convolutions in self.down[1:]:
            levels.append(x)
            x = convolutions(self.pool(x))
        for up, convolutions, level in zip(self.up, self.join, reversed(levels), strict=True):
            x = up(x)
            below, right = (have - want for have, want in zip(level.shape[-2:], x.shape[-2:], strict=True))
            x = convolutions(torch.cat([level, F.pad(x, (0, right, 0, below))], dim=1))
        logits: Tensor = self.classify(x)
        return logits

    def fsdp_blocks(self) -> list[nn.Module]:
        """What is sharded module by module."""
        return [*self.down, *self.join]


def _two_convolutions(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )
