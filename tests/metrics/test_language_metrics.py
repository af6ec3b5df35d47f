"""Perplexity and bits per byte: exact over a data set, however it is cut into batches."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flambeau.metrics import BitsPerByte, Perplexity


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(7, (9, 6), generator=generator)
    lengths = torch.randint(0, 7, (9, 1), generator=generator)
    logits = 3 * torch.randn(9, 6, 7, generator=generator, dtype=torch.float64)
    return logits, targets.masked_fill(torch.arange(6) >= lengths, -100)


def expected_nll() -> tuple[float, int]:
    logits, targets = data()
    counted = targets >= 0
    probabilities = logits.softmax(-1)[counted].gather(1, targets[counted][:, None])
    return -probabilities.log().sum().item(), int(counted.sum())


@settings(deadline=None)
@given(cuts=st.lists(st.integers(1, 8), max_size=3))
def test_ragged_batches_do_not_change_the_scores(cuts: list[int]) -> None:
    """From the sum of -log p and the number of tokens; a mean of batches' perplexities would differ."""
    logits, targets = data()
    perplexity, bits = Perplexity(ignore_index=-100), BitsPerByte(ignore_index=-100)
    edges = [0, *sorted(set(cuts)), 9]
    for start, stop in itertools.pairwise(edges):
        perplexity.update(logits[start:stop], targets[start:stop])
        bits.update(logits[start:stop], targets[start:stop])
    nll, count = expected_nll()
    assert perplexity.compute().item() == pytest.approx(math.exp(nll / count), rel=1e-12)
    assert bits.compute().item() == pytest.approx(nll / count / math.log(2), rel=1e-12)


def test_perplexity_is_torchmetrics() -> None:
    theirs = pytest.importorskip("torchmetrics.text", reason="torchmetrics is an extra").Perplexity(ignore_index=-100)
    ours = Perplexity(ignore_index=-100)
    logits, targets = data()
    for start in (0, 4, 8):
        theirs.update(logits[start : start + 4].float(), targets[start : start + 4])
        ours.update(logits[start : start + 4].float(), targets[start : start + 4])
    assert ours.compute().item() == pytest.approx(theirs.compute().item(), rel=1e-5)


def test_guessing_one_of_256_bytes_costs_8_bits() -> None:
    """And one of 256 classes has a perplexity of 256."""
    logits, targets = torch.zeros(2, 5, 256), torch.randint(256, (2, 5))
    for metric, score in ((BitsPerByte(), 8.0), (Perplexity(), 256.0)):
        metric.update(logits, targets)
        assert metric.compute().item() == pytest.approx(score, rel=1e-6)
        assert metric.higher_is_better is False


def test_a_token_of_several_bytes_counts_as_that_many() -> None:
    """Two bytes for one guess among four: one bit a byte."""
    metric = BitsPerByte(token_bytes=[2, 2, 2, 2])
    metric.update(torch.zeros(1, 3, 4), torch.tensor([[0, 3, 1]]))
    assert metric.compute().item() == pytest.approx(1.0)
    ragged = BitsPerByte(token_bytes=[1, 2, 3, 4], ignore_index=-1)
    ragged.update(torch.zeros(1, 3, 4), torch.tensor([[0, 3, -1]]))
    assert ragged.compute().item() == pytest.approx(4 / 5)


def test_half_precision_is_summed_in_float64() -> None:
    """A million tokens of equal loss have that loss; a float16 or float32 sum would drift."""
    metric = BitsPerByte()
    for _ in range(4):
        metric.update(torch.zeros(1, 50_000, 3, dtype=torch.bfloat16), torch.zeros(1, 50_000, dtype=torch.int64))
    assert metric.compute().item() == pytest.approx(math.log2(3), rel=1e-6)


def test_outputs_with_the_classes_elsewhere_are_an_error() -> None:
    with pytest.raises(ValueError, match="the classes are the last dimension"):
        Perplexity().update(torch.zeros(2, 7, 5), torch.zeros(2, 5, dtype=torch.int64))
