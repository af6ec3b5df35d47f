"""Random numbers of a sample are a function of (seed, epoch, sample), and are random."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import IterableDataset

from flambeau.config.sections import LoaderSettings
from flambeau.data import ArrayDataset, Batch, EvalFeeder, Feeder
from flambeau.data.sample_random import beta, normal, uniform
from flambeau.runtime.seeds import derive, mix

IDS = np.arange(4000)


def test_numbers_are_the_reference_implementation_s() -> None:
    """Word for word those of the scalar SplitMix64 in plain Python."""
    word = 0xFFFF_FFFF_FFFF_FFFF
    found = uniform(77, np.array([0, 5, 2**40]), (3,), purpose="x")
    for row, index in enumerate([0, 5, 2**40]):
        start = mix(mix((index * 0x9E37_79B9_7F4A_7C15 + derive(77, "x")) & word))
        for place in range(3):
            number = mix((start + (place + 1) * 0x9E37_79B9_7F4A_7C15) & word)
            assert found[row, place].item() == (number >> 40) / 2**24


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=40, unique=True), st.integers(0, 2**62), st.data())
def test_a_sample_has_its_numbers_in_whatever_batch_it_is(ids: list[int], key: int, data: st.DataObject) -> None:
    """Uniform ones bit by bit; normal and beta ones up to the last bit, which vectorised logarithms leave open."""
    order = data.draw(st.permutations(ids))
    cut = data.draw(st.integers(0, len(ids)))
    for draw, exact in (
        (lambda some: uniform(key, some, (2, 3)), True),
        (lambda some: normal(key, some, (5,)), False),
        (lambda some: beta(key, some, 0.4), False),
    ):
        whole = draw(np.array(ids))
        parts = torch.cat([draw(np.array(part, dtype=np.int64)) for part in (order[:cut], order[cut:])])
        expected = whole[[ids.index(index) for index in order]]
        if exact:
            assert torch.equal(parts, expected)
        else:
            assert torch.allclose(parts, expected, rtol=3e-7, atol=0)


def test_uniform_numbers_are_uniform_and_independent() -> None:
    """Of places, of samples, of purposes, of keys: chi-squared and correlations within four standard deviations."""
    numbers = uniform(1, IDS, (50,)).double()
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = torch.histc(numbers, bins=100, min=0, max=1)
    expected = numbers.numel() / 100
    chi = ((counts - expected) ** 2 / expected).sum().item()
    assert abs(chi - 99) < 4 * (2 * 99) ** 0.5
    others = [numbers.roll(1, 0), numbers.roll(1, 1), uniform(2, IDS, (50,)), uniform(1, IDS, (50,), purpose="other")]
    for other in others:
        pair = torch.stack([numbers.flatten(), other.flatten().double()])
        assert abs(torch.corrcoef(pair)[0, 1].item()) < 4 / numbers.numel() ** 0.5


def test_normal_numbers_are_normal() -> None:
    """By their first four moments."""
    numbers = normal(1, IDS, (100,)).double()
    size = numbers.numel()
    for power, moment, spread in ((1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)):
        assert abs((numbers**power).mean().item() - moment) < 4 * spread / size**0.5


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 5.0])
def test_beta_numbers_have_the_moments_of_their_distribution(alpha: float) -> None:
    """Mean 1/2, variance 1 / (4 (2 alpha + 1)); none is not a number, however small alpha is."""
    numbers = beta(3, np.arange(40_000), alpha)
    assert torch.isfinite(numbers).all() and numbers.min() >= 0 and numbers.max() <= 1
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(numbers.mean().item() - 0.5) < 4 * (variance / len(numbers)) ** 0.5
    assert numbers.var().item() == pytest.approx(variance, rel=0.03)


def feeder(dataset: Any, rank: int = 0, ranks: int = 1, **options: Any) -> Feeder:
    settings = LoaderSettings(batch_size=7, **options)
    return Feeder(dataset, settings=settings, batch_size=7, seed=5, rank=rank, ranks=ranks)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter((torch.tensor(float(k)), k) for k in range(24))

    def __len__(self) -> int:
        return 24


class Mapped:
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        return torch.tensor(float(index)), index


def numbers_of(batches: Any) -> list[tuple[float, float]]:
    return [
        pair
        for batch in batches
        if batch.size
        for pair in zip(batch.inputs.tolist(), batch.random(purpose="x").tolist(), strict=True)
    ]


DATASETS = {"arrays": ArrayDataset(torch.arange(24.0)), "map": Mapped(), "stream": Stream()}


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS)
@pytest.mark.parametrize("ranks", [2, 3])
def test_every_process_draws_what_one_would(dataset: Any, ranks: int) -> None:
    """For each sample of two epochs, whichever way it is read; another epoch has other numbers."""
    one = numbers_of(islice(feeder(dataset).batches(), 8))
    several = [numbers_of(islice(feeder(dataset, rank, ranks).batches(), 8)) for rank in range(ranks)]
    assert sorted(one) == sorted(pair for rank in several for pair in rank)
    assert len({number for _, number in one}) == 48
    later = numbers_of(islice(feeder(dataset).batches(5), 3))
    assert later == one[-len(later) :]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_no_number(workers: int) -> None:
    """Nor does a restart in the middle of an epoch."""
    source = feeder(Mapped(), workers=workers)
    try:
        assert numbers_of(islice(source.batches(2), 3)) == numbers_of(islice(feeder(Mapped()).batches(), 2, 5))
    finally:
        source.close()


def test_an_evaluation_draws_the_same_each_time() -> None:
    """Whatever the size of its batches."""
    data = ArrayDataset(torch.arange(24.0))
    passes = [numbers_of(EvalFeeder(data, batch_size=size, seed=5).batches()) for size in (4, 4, 9)]
    assert passes[0] == passes[1] == passes[2]


def test_a_part_of_a_batch_draws_what_the_batch_does() -> None:
    """Accumulation does not change a random batch transform; a borrowed row has numbers, of nobody's sample."""
    batch = Batch(torch.zeros(5, 2), None, np.arange(5) + 10, 5, key=9)
    whole = batch.random(2, purpose="a")
    assert torch.equal(torch.cat([part.random(2, purpose="a") for part in batch.split(2)]), whole)
    assert [part.start for part in batch.split(3)] == [0, 2, 4]
    borrowed = batch.split(6)[-1]
    assert borrowed.size == 0 and borrowed.random(2).shape == (1, 2)
