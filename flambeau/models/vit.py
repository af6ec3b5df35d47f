"""The vision transformer."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn

from flambeau.errors import UsageError
from flambeau.models.transformer import Block
from flambeau.registry import register


@register.model("vit")
class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al., 2021): images (N, C, H, W) to logits (N, num_classes).

    Patches of the image and a class token go through transformer blocks; the class token's output is classified. The
    defaults are small; ViT-Ti/16 is `image_size: 224, patch_size: 16, width: 192, num_layers: 12, num_heads: 3`, and
    ViT-S and ViT-B have widths of 384 and 768, with 6 and 12 heads.

    Args:
        num_classes: outputs per image.
        in_channels: channels of the images.
        image_size: height and width of the images, a multiple of `patch_size`.
        patch_size: height and width of a patch.
        width: numbers a patch, a multiple of `num_heads`.
        num_layers: transformer blocks.
        num_heads: attention heads of a block.
        dropout: probability of dropping embeddings, attention weights and what a block's branches add, in training.
    """

    def __init__(
        self,
        num_classes: Annotated[int, Ge(1)] = 10,
        in_channels: Annotated[int, Ge(1)] = 1,
        image_size: Annotated[int, Ge(1)] = 28,
        patch_size: Annotated[int, Ge(1)] = 4,
        width: Annotated[int, Ge(1)] = 64,
        num_layers: Annotated[int, Ge(1)] = 4,
        num_heads: Annotated[int, Ge(1)] = 4,
        dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise UsageError(f"model.image_size: {image_size} is no multiple of patch_size, {patch_size}")
        if width % num_heads:
            raise UsageError(f"model.width: {width} does not divide into {num_heads} heads")
        self.image_size = image_size
        self.patches = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.empty(1, 1 + (image_size // patch_size) ** 2, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, num_heads, dropout=dropout, eps=1e-6) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)
        self._initialize()

    def _initialize(self) -> None:
        # As the authors' code: variance-preserving in the blocks, nothing from the head, places of GPT's scale.
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.places, std=0.02)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def fsdp_blocks(self) -> nn.ModuleList:
        """What `trainer.fsdp` gathers, and `trainer.activation_checkpointing` computes again, one by one."""
        return self.blocks

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"images of {tuple(images.shape[-2:])} pixels, and the model's image_size is {self.image_size}"
            )
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_token.expand(len(x), -1, -1), x), dim=1)
        x = self.dropout(x + self.places)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x[:, 0]))
        return logits
