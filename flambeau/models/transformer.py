"""The layer of a transformer, before which its input is normalised: what the text and image models here are made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of `rotation`, each (T, half the width of a head)."""


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017, section 3.2): (N, T, width) to the same.

    Args:
        width: numbers a position.
        num_heads: heads, of `width / num_heads` numbers each.
        causal: a position attends to itself and to those before it alone.
        dropout: probability that an attention weight, or a number of the result, is dropped in training.
    """

    def __init__(self, width: int, num_heads: int, *, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"a width of {width} does not divide into {num_heads} heads")
        self.num_heads = num_heads
        self.causal = causal
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.out_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, rotated: Rotation | None = None) -> Tensor:
        """Attend.

        Args:
            mask: (N, T), True where there is something to attend to; None: everywhere.
            rotated: turns queries and keys by their positions.
        """
        n, t, width = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        if rotated is not None:
            q, k = _rotate(q, rotated), _rotate(k, rotated)
        x = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if mask is None else mask[:, None, None, :],
            is_causal=self.causal,
            dropout_p=self.dropout if self.training else 0.0,
        )
        x = self.out(x.transpose(1, 2).reshape(n, t, width))
        return self.out_dropout(x)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and a perceptron of four times the width, each with a norm before and a shortcut around it.

    Args: as for `Attention`; `eps` is that of the norms.
    """

    def __init__(
        self, width: int, num_heads: int, *, causal: bool = False, dropout: float = 0.0, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(width, num_heads, causal=causal, dropout=dropout)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None, rotated: Rotation | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), mask, rotated)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


def initialize(model: nn.Module, num_layers: int) -> None:
    """GPT-2's initial weights (Radford et al., 2019, section 2.3).

    Normal with a standard deviation of 0.02, and of that over sqrt(2 `num_layers`) where a block's two branches add to
    the shortcut, so that its variance does not grow with depth; biases are 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, Block):
            for last in (module.attention.out, module.mlp[2]):
                assert isinstance(last, nn.Linear)
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * num_layers))


def rotation(length: int, head_width: int, device: torch.device) -> Rotation:
    """The angles by which positions 0 to `length` - 1 are turned (Su et al., 2021, "RoFormer", eq. 15)."""
    frequencies = 10_000.0 ** (-torch.arange(0, head_width, 2, dtype=torch.float64, device=device) / head_width)
    angles = torch.arange(length, dtype=torch.float64, device=device)[:, None] * frequencies
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, rotated: Rotation) -> Tensor:
    """Turn each pair (x[i], x[i + half]) of a head by its position's angle: x is (N, heads, T, head width)."""
    cos, sin = (part.to(x.dtype) for part in rotated)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
