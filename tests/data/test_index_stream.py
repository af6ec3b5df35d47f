"""The order of samples is a permutation, a function of (size, seed, epoch), uniform, and had without memory."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flambeau.data import IndexStream


def chi_square_is_plausible(counts: list[int], expected: float) -> bool:
    """Whether counts could come from a uniform choice: within 4.5 standard deviations of chi-square's mean."""
    statistic = sum((count - expected) ** 2 for count in counts) / expected
    freedom = len(counts) - 1
    return bool(abs(statistic - freedom) < 4.5 * (2 * freedom) ** 0.5)


def test_each_epoch_visits_every_sample_exactly_once() -> None:
    """For each size from 1 to 300."""
    for size in range(1, 301):
        order = IndexStream(size, seed=1).indices(2, 0, size)
        assert order.dtype == np.int64
        assert np.array_equal(np.sort(order), np.arange(size))


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 131_072, 150_001])
def test_each_epoch_of_a_large_set_visits_every_sample_exactly_once(size: int) -> None:
    """On both sides of the size at which the order is no longer held as a table."""
    order = IndexStream(size, seed=0).indices(0, 0, size)
    assert np.array_equal(np.sort(order), np.arange(size))


@settings(max_examples=60, deadline=None)
@given(st.integers(70_000, 10**12), st.integers(0, 2**40), st.integers(0, 10**6), st.data())
def test_windows_of_an_order_fit_together(size: int, seed: int, epoch: int, data: st.DataObject) -> None:
    """Any window equals the same positions of a larger one; no index comes twice or lies outside."""
    start = data.draw(st.integers(0, size - 3000))
    stream = IndexStream(size, seed)
    window = stream.indices(epoch, start, start + 3000)
    assert len(set(window.tolist())) == 3000
    assert window.min() >= 0 and window.max() < size
    inner = data.draw(st.integers(0, 2999))
    assert stream.indices(epoch, start + inner, start + inner + 1)[0] == window[inner]


def test_ten_thousand_million_samples_need_no_memory() -> None:
    """The first, a middle and the last position of 10**10 samples are had with under 2 MB."""
    size = 10**10
    stream = IndexStream(size, seed=0)
    stream.indices(0, 0, 1)
    tracemalloc.start()
    for start in (0, size // 2, size - 100_000):
        assert len(stream.indices(1, start, start + 100_000)) == 100_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_500_000  # of which 800,000 are the answer itself


def test_every_permutation_of_four_is_as_frequent() -> None:
    """All 24, over 6,000 epochs."""
    stream = IndexStream(4, seed=0)
    counts = Counter(tuple(stream.indices(epoch, 0, 4).tolist()) for epoch in range(6_000))
    assert chi_square_is_plausible([counts[order] for order in permutations(range(4))], 250)


@pytest.mark.parametrize("size", [3, 8, 10])
def test_every_sample_is_as_often_at_every_position(size: int) -> None:
    """And at position j of the next epoch whatever position it had in this one."""
    orders = np.stack([IndexStream(size, seed=3).indices(epoch, 0, size) for epoch in range(4000)])
    for position in range(size):
        assert chi_square_is_plausible(np.bincount(orders[:, position], minlength=size).tolist(), 4000 / size)
    places = np.argsort(orders, axis=1)
    moves = places[:-1, 0] * size + places[1:, 0]
    assert chi_square_is_plausible(np.bincount(moves, minlength=size**2).tolist(), 3999 / size**2)


@pytest.mark.parametrize("size", [6, 10])
def test_every_pair_of_samples_is_as_often_adjacent(size: int) -> None:
    """Each ordered pair of neighbours in the order."""
    orders = np.stack([IndexStream(size, seed=4).indices(epoch, 0, size) for epoch in range(4000)])
    pairs = (orders[:, :-1] * size + orders[:, 1:]).ravel()
    counts = np.bincount(pairs, minlength=size * size).reshape(size, size)[~np.eye(size, dtype=bool)]
    assert chi_square_is_plausible(counts.tolist(), pairs.size / counts.size)


def test_a_large_order_has_no_drift() -> None:
    """Of 200,000 samples: batches are drawn from everywhere, and neighbours are not neighbours before."""
    size = 200_000
    order = IndexStream(size, seed=5).indices(0, 0, size)
    means = order[: size // 500 * 500].reshape(-1, 500).mean(axis=1)
    assert abs(means.std() / (size / 12**0.5 / 500**0.5) - 1) < 0.15
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.01


def test_epochs_and_seeds_give_orders_that_have_nothing_in_common() -> None:
    """Two independent permutations agree at one position on average, and so do these."""
    size = 2000
    reference = IndexStream(size, seed=0).indices(0, 0, size)
    others = [IndexStream(size, seed=0).indices(epoch, 0, size) for epoch in range(1, 101)]
    others += [IndexStream(size, seed=seed).indices(0, 0, size) for seed in range(1, 101)]
    agreements = [int((order == reference).sum()) for order in others]
    assert 140 < sum(agreements) < 260
    assert max(agreements) < 9


def test_the_order_of_a_seed_stays_what_it_is() -> None:
    """These numbers are the contract: a change of them changes the data order of every existing run."""
    assert IndexStream(10, seed=0).indices(0, 0, 10).tolist() == [4, 8, 1, 9, 6, 0, 2, 3, 5, 7]
    assert IndexStream(10**9, seed=1).indices(5, 10**6, 10**6 + 2).tolist() == [437925010, 640709607]


def test_without_shuffling_the_order_is_the_datasets_own() -> None:
    """In every epoch."""
    assert IndexStream(5, seed=0, shuffle=False).indices(3, 1, 4).tolist() == [1, 2, 3]


def test_positions_outside_an_epoch_are_refused() -> None:
    """Instead of running into the next one."""
    with pytest.raises(IndexError, match="5 samples"):
        IndexStream(5, seed=0).indices(0, 3, 6)


def test_what_is_returned_may_be_written_to() -> None:
    """Orders are remembered inside; a caller cannot spoil them."""
    stream = IndexStream(10, seed=0)
    first = stream.indices(0, 0, 10)
    kept = first.copy()
    first[:] = -1
    assert np.array_equal(stream.indices(0, 0, 10), kept)
