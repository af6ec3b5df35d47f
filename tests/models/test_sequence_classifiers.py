"""Models of sequences: padding changes nothing, order does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flambeau.data import Padding
from flambeau.errors import UsageError
from flambeau.models import GRUClassifier, TransformerClassifier

MODELS = {
    "gru": lambda: GRUClassifier(9, 3, width=6, hidden_size=5),
    "gru, two layers": lambda: GRUClassifier(9, 3, width=6, hidden_size=5, num_layers=2),
    "gru, both ways": lambda: GRUClassifier(9, 3, width=6, hidden_size=5, num_layers=2, bidirectional=True),
    "transformer": lambda: TransformerClassifier(9, 3, max_length=20, num_heads=2, width=8),
}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().double()


def batch(sequences: list[torch.Tensor], *, fill: int = 0, longest: int = 0) -> Any:
    samples = [{"inputs": {"tokens": tokens, "lengths": len(tokens)}, "targets": 0} for tokens in sequences]
    inputs, _ = Padding({"inputs.tokens": fill})(samples)
    missing = max(longest - inputs["tokens"].shape[1], 0)
    return {**inputs, "tokens": nn.functional.pad(inputs["tokens"], (0, missing), value=fill)}


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), fill=st.integers(0, 8), longest=st.integers(1, 18))
def test_padding_does_not_change_a_result(name: str, lengths: list[int], fill: int, longest: int) -> None:
    """A sequence in a padded batch has the logits, and gives the gradients, that it has alone."""
    model = make(name)
    generator = torch.Generator().manual_seed(sum(lengths))
    sequences = [torch.randint(1, 9, (length,), generator=generator) for length in lengths]
    together = model(batch(sequences, fill=fill, longest=longest))
    alone = torch.cat([model(batch([tokens])) for tokens in sequences])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-14)
    weights = list(model.parameters())
    found = torch.autograd.grad(together.square().sum(), weights)
    expected = torch.autograd.grad(alone.square().sum(), weights)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", MODELS)
def test_the_order_of_tokens_counts(name: str) -> None:
    model = make(name)
    one, other = model(batch([torch.tensor([1, 2, 3, 4]), torch.tensor([4, 2, 3, 1])]))
    assert (one - other).abs().max() > 1e-5


def test_reading_from_both_ends_is_torchs_bidirectional_gru() -> None:
    """On packed sequences, with the same weights."""
    model = make("gru, both ways")
    assert isinstance(model, GRUClassifier)
    theirs = nn.GRU(6, 5, num_layers=2, batch_first=True, bidirectional=True).double()
    for layer in range(2):
        for ours, suffix in ((model.forward_layers[layer], ""), (model.backward_layers[layer], "_reverse")):
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(theirs, f"{kind}_l{layer}{suffix}").data = getattr(ours, f"{kind}_l0").data
    inputs = batch([torch.tensor([1, 2, 3, 4, 5]), torch.tensor([6]), torch.tensor([7, 8, 1])])
    packed = nn.utils.rnn.pack_padded_sequence(
        model.embedding(inputs["tokens"]), inputs["lengths"], batch_first=True, enforce_sorted=False
    )
    ahead, back = theirs(packed)[1][-2:]
    torch.testing.assert_close(model(inputs), model.classifier(torch.cat((ahead, back), dim=-1)), rtol=1e-12, atol=0)


def test_more_tokens_than_there_are_places_are_an_error() -> None:
    """And so is a width that the heads cannot share."""
    with pytest.raises(ValueError, match="21 tokens are more than the model's max_length of 20"):
        make("transformer")(batch([torch.ones(21, dtype=torch.int64)]))
    with pytest.raises(UsageError, match="10 does not divide into 4 heads"):
        TransformerClassifier(9, width=10)
