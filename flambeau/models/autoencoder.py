"""A convolutional autoencoder."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from flambeau.errors import UsageError
from flambeau.registry import register


@register.model("autoencoder")
class Autoencoder(nn.Module):
    """Convolutional autoencoder: images (N, C, H, W) to images of the same shape.

    Each level of the encoder is two 3 x 3 convolutions, the second with a stride of 2, with twice the channels of the
    level before; the decoder goes the same way back with 2 x 2 transposed convolutions. Between them lies a code of
    `code_channels` maps of H / 2^depth x W / 2^depth. Trained on clean images it compresses, on noisy ones it denoises
    (Vincent et al., 2008).

    Args:
        in_channels: channels of the images.
        depth: levels; H and W must be multiples of 2^depth.
        width: channels of the first level.
        code_channels: maps of the code.
    """

    def __init__(
        self,
        in_channels: Annotated[int, Ge(1)] = 1,
        depth: Annotated[int, Ge(1)] = 2,
        width: Annotated[int, Ge(1)] = 32,
        code_channels: Annotated[int, Ge(1)] = 16,
    ) -> None:
        super().__init__()
        self.multiple = 2**depth
        widths = [width * 2**level for level in range(depth)]
        encoder: list[nn.Module] = []
        channels = in_channels
        for wider in widths:
            encoder += [nn.Conv2d(channels, wider, 3, padding=1), nn.ReLU(inplace=True)]
            encoder += [nn.Conv2d(wider, wider, 3, stride=2, padding=1), nn.ReLU(inplace=True)]
            channels = wider
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(channels, code_channels, 1))
        decoder: list[nn.Module] = []
        channels = code_channels
        for narrower in reversed(widths):
            decoder += [nn.ConvTranspose2d(channels, narrower, 2, stride=2), nn.ReLU(inplace=True)]
            decoder += [nn.Conv2d(narrower, narrower, 3, padding=1), nn.ReLU(inplace=True)]
            channels = narrower
        self.decoder = nn.Sequential(*decoder, nn.Conv2d(channels, in_channels, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2] % self.multiple or images.shape[-1] % self.multiple:
            raise UsageError(
                f"the autoencoder halves images {self.multiple.bit_length() - 1} times, and these have "
                f"{images.shape[-2]} x {images.shape[-1]} pixels",
                remedy=f"use images whose sides are multiples of {self.multiple}, or a smaller model.depth",
            )
        decoded: Tensor = self.decoder(self.encoder(images))
        return decoded
