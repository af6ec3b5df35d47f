"""A transformer that reads a sequence of tokens and names its class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn

from flambeau.errors import UsageError
from flambeau.models.transformer import Block, initialize
from flambeau.registry import register


@register.model("transformer_classifier")
class TransformerClassifier(nn.Module):
    """Transformer encoder: `{"tokens": (N, T), "lengths": (N,)}` to logits (N, num_classes).

    Attention goes to the tokens before a sequence's length alone, and the mean of their outputs is classified, so
    padding changes nothing.

    Args:
        vocab_size: tokens that there are.
        num_classes: outputs per sequence.
        max_length: most tokens of a sequence.
        num_layers: transformer blocks.
        num_heads: attention heads of a block.
        width: numbers a token, a multiple of `num_heads`.
        dropout: probability of dropping embeddings, attention weights and what a block's branches add, in training.
    """

    def __init__(
        self,
        vocab_size: Annotated[int, Ge(1)],
        num_classes: Annotated[int, Ge(1)] = 2,
        max_length: Annotated[int, Ge(1)] = 128,
        num_layers: Annotated[int, Ge(1)] = 2,
        num_heads: Annotated[int, Ge(1)] = 4,
        width: Annotated[int, Ge(1)] = 64,
        dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise UsageError(f"model.width: {width} does not divide into {num_heads} heads")
        self.max_length = max_length
        self.tokens = nn.Embedding(vocab_size, width)
        self.places = nn.Embedding(max_length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, num_heads, dropout=dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes)
        initialize(self, num_layers)

    def fsdp_blocks(self) -> nn.ModuleList:
        """What `trainer.fsdp` gathers, and `trainer.activation_checkpointing` computes again, one by one."""
        return self.blocks

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        tokens, lengths = inputs["tokens"], inputs["lengths"]
        if tokens.shape[1] > self.max_length:
            raise ValueError(f"{tokens.shape[1]} tokens are more than the model's max_length of {self.max_length}")
        places = torch.arange(tokens.shape[1], device=tokens.device)
        mask = places < lengths[:, None]
        x = self.dropout(self.tokens(tokens) + self.places(places))
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x) * mask[:, :, None]
        logits: Tensor = self.classifier(x.sum(dim=1) / lengths[:, None])
        return logits
