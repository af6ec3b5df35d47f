"""A recurrent network that reads a sequence of tokens and names its class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn

from flambeau.registry import register


@register.model("gru_classifier")
class GRUClassifier(nn.Module):
    """Gated recurrent units (Cho et al., 2014): `{"tokens": (N, T), "lengths": (N,)}` to logits (N, num_classes).

    What stands behind a sequence's length changes nothing: the output is taken where the sequence ends, and
    the other direction reads the sequence, not its padding, from the end. Lengths stay on the device (packing them
    would have the host wait for it).

    Args:
        vocab_size: tokens that there are.
        num_classes: outputs per sequence.
        width: numbers a token is embedded in.
        hidden_size: units of each layer and direction.
        num_layers: recurrent layers.
        bidirectional: read from both ends, in every layer.
        dropout: probability that a number between layers, or before the classifier, is dropped in training.
    """

    def __init__(
        self,
        vocab_size: Annotated[int, Ge(1)],
        num_classes: Annotated[int, Ge(1)] = 2,
        width: Annotated[int, Ge(1)] = 32,
        hidden_size: Annotated[int, Ge(1)] = 64,
        num_layers: Annotated[int, Ge(1)] = 1,
        bidirectional: bool = False,
        dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        directions = 2 if bidirectional else 1
        widths = [width] + [directions * hidden_size] * (num_layers - 1)
        self.forward_layers = nn.ModuleList(nn.GRU(size, hidden_size, batch_first=True) for size in widths)
        self.backward_layers = nn.ModuleList(
            nn.GRU(size, hidden_size, batch_first=True) for size in widths if bidirectional
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(directions * hidden_size, num_classes)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        tokens, lengths = inputs["tokens"], inputs["lengths"]
        places = torch.arange(tokens.shape[1], device=tokens.device)
        # Where each place lies when a sequence is read from its end; padding stays behind it.
        reverse = torch.where(places < lengths[:, None], lengths[:, None] - 1 - places, places)
        x = self.embedding(tokens)
        for number, layer in enumerate(self.forward_layers):
            ahead = layer(x)[0]
            if self.backward_layers:
                back = _reordered(self.backward_layers[number](_reordered(x, reverse))[0], reverse)
                ahead = torch.cat((ahead, back), dim=-1)
            x = self.dropout(ahead)
        size = self.forward_layers[0].hidden_size
        assert isinstance(size, int)
        last = x.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, x.shape[-1]))[:, 0]
        ends = torch.cat((last[:, :size], x[:, 0, size:]), dim=-1)  # where each direction has read all
        logits: Tensor = self.classifier(ends)
        return logits


def _reordered(x: Tensor, places: Tensor) -> Tensor:
    return x.gather(1, places[:, :, None].expand(-1, -1, x.shape[-1]))
