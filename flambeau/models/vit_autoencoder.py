"""An autoencoder of patches, with the layers of a vision transformer."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn
from torch.nn import functional as F

from flambeau.errors import UsageError
from flambeau.registry import register


class Block(nn.Module):
    """Pre-norm attention over the patches of an image and a perceptron on each (Dosovitskiy et al., 2021, eq. 2, 3)."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(hidden_size)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.project = nn.Linear(hidden_size, hidden_size)
        self.norm2 = nn.LayerNorm(hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, 4 * hidden_size), nn.GELU(), nn.Linear(4 * hidden_size, hidden_size)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.project(attended))
        y: Tensor = x + self.dropout(self.mlp(self.norm2(x)))
        return y


@register.model("vit_autoencoder")
class ViTAutoencoder(nn.Module):
    """Vision transformer as an autoencoder: images (N, C, H, W) to images of the same shape.

    Patches of `patch_size` x `patch_size` pixels become tokens with a learned position; transformer blocks encode them
    to `code_size` numbers each, and as many blocks decode these to the patches' pixels.

    Args:
        image_size: height and width of the images.
        patch_size: side of the patches; divides the image size.
        in_channels: channels of the images.
        hidden_size: numbers a token; a multiple of the heads.
        num_layers: transformer blocks of the encoder, and of the decoder.
        num_heads: heads of the attention.
        code_size: numbers that a patch is encoded to.
        dropout: probability that a number is dropped after each attention and perceptron in training.
    """

    def __init__(
        self,
        image_size: Annotated[int, Ge(1)] = 16,
        patch_size: Annotated[int, Ge(1)] = 4,
        in_channels: Annotated[int, Ge(1)] = 1,
        hidden_size: Annotated[int, Ge(1)] = 64,
        num_layers: Annotated[int, Ge(1)] = 2,
        num_heads: Annotated[int, Ge(1)] = 4,
        code_size: Annotated[int, Ge(1)] = 16,
        dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise UsageError(
                f"images of {image_size} pixels cannot be cut into patches of {patch_size}",
                remedy="let model.patch_size divide model.image_size",
            )
        if hidden_size % num_heads:
            raise UsageError(
                f"{hidden_size} numbers cannot be shared among {num_heads} heads",
                remedy="let model.num_heads divide model.hidden_size",
            )
        self.image_size = image_size
        self.patch_size = patch_size
        pixels, tokens = in_channels * patch_size**2, (image_size // patch_size) ** 2
        self.embed = nn.Linear(pixels, hidden_size)
        self.positions = nn.Parameter(torch.empty(2, tokens, hidden_size))
        """Of the encoder and of the decoder."""
        nn.init.normal_(self.positions, std=0.02)
        self.encoder = nn.Sequential(*(Block(hidden_size, num_heads, dropout) for _ in range(num_layers)))
        self.encode = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, code_size))
        self.decode = nn.Linear(code_size, hidden_size)
        self.decoder = nn.Sequential(*(Block(hidden_size, num_heads, dropout) for _ in range(num_layers)))
        self.to_pixels = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, pixels))

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise UsageError(
                f"the model is for images of {self.image_size} x {self.image_size} pixels, and these have "
                f"{images.shape[-2]} x {images.shape[-1]}",
                remedy="set model.image_size",
            )
        side, channels = self.patch_size, images.shape[1]
        patches = F.unfold(images, side, stride=side).transpose(1, 2)  # (N, tokens, C * side * side)
        code = self.encode(self.encoder(self.embed(patches) + self.positions[0]))
        decoded: Tensor = self.to_pixels(self.decoder(self.decode(code) + self.positions[1]))
        across = self.image_size // side
        grid = decoded.view(-1, across, across, channels, side, side)
        return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, self.image_size, self.image_size)

    def fsdp_blocks(self) -> list[nn.Module]:
        """What is sharded module by module."""
        return [*self.encoder, *self.decoder]
