"""The language model: what it may look at, how it begins, and how it writes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flambeau.errors import UsageError
from flambeau.models import GPT
from flambeau.models.transformer import rotation

POSITIONS = ["learned", "rotary"]


def small(**changes: Any) -> GPT:
    torch.manual_seed(0)
    arguments = {"vocab_size": 11, "block_size": 12, "num_layers": 2, "num_heads": 2, "width": 16, **changes}
    return GPT(**arguments).double()


@pytest.mark.parametrize("positions", POSITIONS)
@settings(max_examples=20, deadline=None)
@given(place=st.integers(1, 9), token=st.integers(0, 10))
def test_a_later_token_never_changes_an_earlier_output(positions: str, place: int, token: int) -> None:
    """To the bit; and it does change the outputs from its own place on."""
    model = small(positions=positions)
    tokens = torch.randint(11, (1, 10), generator=torch.Generator().manual_seed(place))
    changed = tokens.clone()
    changed[0, place] = token
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :place], after[:, :place])
    assert torch.equal(tokens, changed) or not torch.equal(before[:, place:], after[:, place:])


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_order_of_what_lies_before_counts(positions: str) -> None:
    """A model without positions would give the last place the same output."""
    model = small(positions=positions)
    tokens = torch.tensor([[1, 2, 3, 4]])
    swapped = torch.tensor([[2, 1, 3, 4]])
    assert (model(tokens)[0, -1] - model(swapped)[0, -1]).abs().max() > 1e-6


def test_rotary_attention_depends_on_distances_alone() -> None:
    """The product of a query and a key turned by their places is the same at places 0 and 3 as at 5 and 8."""
    from flambeau.models.transformer import _rotate

    vectors = torch.randn(1, 1, 9, 8, dtype=torch.float64)
    vectors[:] = vectors[:, :, :1]
    turned = _rotate(vectors, rotation(9, 8, torch.device("cpu")))[0, 0]
    assert turned[0] @ turned[3] == pytest.approx(float(turned[5] @ turned[8]), rel=1e-12)
    assert turned[0] @ turned[3] != pytest.approx(float(turned[0] @ turned[4]), rel=1e-3)
    torch.testing.assert_close(turned.norm(dim=-1), vectors[0, 0].norm(dim=-1))


def test_the_first_loss_is_that_of_guessing() -> None:
    """ln of the vocabulary, to a percent: no token is preferred at the beginning."""
    torch.manual_seed(0)
    model = GPT(vocab_size=1000, block_size=64, num_layers=6, width=64)
    tokens = torch.randint(1000, (8, 65))
    loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(1000), rel=0.01)


def test_the_branches_of_a_deep_model_begin_smaller() -> None:
    """So that what all of them add has the variance of one layer's, at any depth."""
    deep = GPT(num_layers=8, width=64)
    block = deep.blocks[3]
    assert block.attention.out.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert block.mlp[2].weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert block.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_the_model_has_the_size_of_gpt_2_small() -> None:
    """124,439,808 parameters, the output matrix being the input's."""
    with torch.device("meta"):
        model = GPT(vocab_size=50257, block_size=1024, num_layers=12, num_heads=12, width=768)
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


def test_one_matrix_embeds_and_scores_unless_told_otherwise() -> None:
    tied, untied = small(), small(tie_weights=False)
    assert tied.head.weight is tied.tokens.weight
    assert untied.head.weight is not untied.tokens.weight
    difference = sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters())
    assert difference == 11 * 16


@pytest.mark.parametrize("positions", POSITIONS)
def test_more_tokens_than_the_block_are_an_error(positions: str) -> None:
    with pytest.raises(ValueError, match="13 tokens are more than the model's block_size of 12"):
        small(positions=positions)(torch.zeros(1, 13, dtype=torch.int64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"width": 18, "num_heads": 4}, "18 does not divide"), ({"width": 6, "positions": "rotary"}, "even width")],
)
def test_a_width_that_its_heads_cannot_share_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small(**changes)


class TestGenerate:
    def test_texts_go_on_beyond_the_block(self) -> None:
        """The given tokens stay; the last `block_size` are what the next is drawn from."""
        model = small().eval()
        prompt = torch.tensor([[1, 2], [3, 4]])
        written = model.generate(prompt, 20, generator=torch.Generator().manual_seed(1))
        assert written.shape == (2, 22)
        assert torch.equal(written[:, :2], prompt)
        expected = model(written[:1, -13:-1])[0, -1].argmax()
        assert model.generate(written[:1, :-1], 1, temperature=0)[0, -1] == expected

    def test_temperature_0_and_top_1_take_the_likeliest(self) -> None:
        model = small().eval()
        prompt = torch.tensor([[1, 2, 3]])
        cold = model.generate(prompt, 6, temperature=0)
        assert torch.equal(cold, model.generate(prompt, 6, top_k=1))
        for place in range(3, 9):
            assert cold[0, place] == model(cold[:, :place])[0, -1].argmax()

    def test_what_is_drawn_has_the_models_probabilities(self) -> None:
        """Over 4,000 draws of one token, among the 3 likeliest at half the temperature."""
        model = small().eval()
        prompt = torch.tensor([[5, 7]]).expand(4000, 2)
        drawn = model.generate(prompt, 1, temperature=0.5, top_k=3, generator=torch.Generator().manual_seed(0))[:, -1]
        likeliest = model(prompt[:1])[0, -1].topk(3)
        expected = torch.zeros(11, dtype=torch.float64)
        expected[likeliest.indices] = (likeliest.values / 0.5).softmax(0)
        found = drawn.bincount(minlength=11) / 4000
        assert (found - expected).abs().max() < 0.03
        assert found[expected == 0].sum() == 0

    def test_a_generator_makes_the_text_a_function_of_its_seed(self) -> None:
        """And the global generator is not drawn from."""
        model, prompt = small().eval(), torch.tensor([[1]])
        state = torch.get_rng_state()
        texts = [model.generate(prompt, 10, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
        assert torch.equal(texts[0], texts[1])
        assert not torch.equal(texts[0], texts[2])
        assert torch.equal(torch.get_rng_state(), state)
