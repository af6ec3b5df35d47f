"""A decoder-only transformer, which predicts the next token."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn

from flambeau.errors import UsageError
from flambeau.models.transformer import Block, initialize, rotation
from flambeau.registry import register


@register.model("gpt")
class GPT(nn.Module):
    """Language model of the GPT-2 kind (Radford et al., 2019): tokens (N, T) to logits (N, T, vocab_size).

    The logits at a place are of the token after it, and depend on no later one. The defaults of GPT-2 small are
    `vocab_size: 50257, block_size: 1024, num_layers: 12, num_heads: 12, width: 768`.

    Args:
        vocab_size: tokens that there are.
        block_size: most tokens that the model looks back on, T or more.
        num_layers: transformer blocks.
        num_heads: attention heads of a block.
        width: numbers a token, a multiple of `num_heads`.
        dropout: probability of dropping embeddings, attention weights and what a block's branches add, in training.
        positions: `learned`: a vector a place is added to the tokens'; `rotary`: queries and keys are turned by their
            places (Su et al., 2021), which needs no weights.
        tie_weights: one matrix embeds tokens and scores them (Press and Wolf, 2017).
    """

    def __init__(
        self,
        vocab_size: Annotated[int, Ge(1)] = 256,
        block_size: Annotated[int, Ge(1)] = 128,
        num_layers: Annotated[int, Ge(1)] = 4,
        num_heads: Annotated[int, Ge(1)] = 4,
        width: Annotated[int, Ge(1)] = 128,
        dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
        positions: Literal["learned", "rotary"] = "learned",
        tie_weights: bool = True,
    ) -> None:
        super().__init__()
        if width % num_heads or (positions == "rotary" and width // num_heads % 2):
            even = " of an even width" if positions == "rotary" else ""
            raise UsageError(f"model.width: {width} does not divide into {num_heads} heads{even}")
        self.block_size = block_size
        self.head_width = width // num_heads
        self.tokens = nn.Embedding(vocab_size, width)
        self.places = nn.Embedding(block_size, width) if positions == "learned" else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, num_heads, causal=True, dropout=dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        if tie_weights:
            self.head.weight = self.tokens.weight
        initialize(self, num_layers)

    def fsdp_blocks(self) -> nn.ModuleList:
        """What `trainer.fsdp` gathers, and `trainer.activation_checkpointing` computes again, one by one."""
        return self.blocks

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        if length > self.block_size:
            raise ValueError(f"{length} tokens are more than the model's block_size of {self.block_size}")
        x = self.tokens(tokens)
        rotated = None
        if self.places is not None:
            x = x + self.places(torch.arange(length, device=tokens.device))
        else:
            rotated = rotation(length, self.head_width, tokens.device)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, None, rotated)
        logits: Tensor = self.head(self.norm(x))
        return logits

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        count: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Go on with texts, token by token; call it in evaluation mode.

        Args:
            tokens: (N, T), T at least 1; the last `block_size` of them count.
            count: tokens to add.
            temperature: divides the logits: below 1 likelier tokens are drawn more often; 0 takes the likeliest.
            top_k: draw among the k likeliest only.
            generator: what is drawn from, on the tokens' device; default: torch's global one.

        Returns:
            (N, T + count): the texts with what was added.
        """
        for _ in range(count):
            logits = self(tokens[:, -self.block_size :])[:, -1].float()
            if temperature == 0:
                drawn = logits.argmax(dim=-1, keepdim=True)
            else:
                logits = logits / temperature
                if top_k is not None and top_k < logits.shape[-1]:
                    least = logits.topk(top_k, dim=-1).values[:, -1:]
                    logits = logits.masked_fill(logits < least, -torch.inf)
                drawn = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)
            tokens = torch.cat((tokens, drawn), dim=1)
        return tokens
