"""Splits are disjoint, of the sizes asked for, and a function of the seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flambeau.data import split
from flambeau.errors import UsageError

fractions = st.tuples(st.floats(0, 0.45), st.floats(0, 0.45))


@settings(deadline=None)
@given(st.integers(0, 2000), fractions, st.integers(0, 10**9))
def test_the_parts_are_disjoint_complete_and_of_the_sizes_asked_for(
    size: int, shares: tuple[float, float], seed: int
) -> None:
    """Every sample is in exactly one part."""
    parts = split(size, shares, seed)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(size))
    assert [len(part) for part in parts[1:]] == [round(share * size) for share in shares]
    assert all(np.array_equal(part, np.sort(part)) for part in parts)


@settings(deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=500), fractions, st.integers(0, 10**9))
def test_a_stratified_split_gives_each_part_its_share_of_every_class(
    labels: list[int], shares: tuple[float, float], seed: int
) -> None:
    """To within one sample; of a class of one sample, no two parts can have it."""
    parts = split(len(labels), shares, seed, labels=labels)
    counts = np.bincount(labels)
    for part, share in zip(parts[1:], shares, strict=True):
        assert len(part) == round(share * len(labels))
        of_part = np.bincount(np.asarray(labels)[part], minlength=len(counts))
        assert (np.abs(of_part - share * counts) <= (1 if part is parts[1] else 2)).all()


def test_rare_classes_do_not_crowd_out_the_common_one() -> None:
    """Of seven classes with one sample each, a tenth is less than one sample."""
    labels = np.array([0] * 93 + [1, 2, 3, 4, 5, 6, 7])
    for seed in range(20):
        held_out = split(100, (0.1,), seed, labels=labels)[1]
        assert (labels[held_out] == 0).sum() >= 9


def test_a_split_is_a_function_of_the_seed() -> None:
    """The same seed gives the same parts, another seed others."""
    labels = np.arange(200) % 10
    for kwargs in ({}, {"labels": labels}):
        a, b, c = (split(200, (0.2,), seed, **kwargs)[1].tolist() for seed in (0, 0, 1))
        assert a == b
        assert a != c


def test_a_stratified_split_is_random_within_the_classes() -> None:
    """Each sample of a class is held out as often as the others, over seeds."""
    labels = np.repeat([0, 1], [30, 70])
    held_out = np.zeros(100)
    for seed in range(1000):
        held_out[split(100, (0.2,), seed, labels=labels)[1]] += 1
    assert (np.abs(held_out - 200) < 4.5 * (1000 * 0.2 * 0.8) ** 0.5).all()


@pytest.mark.parametrize("shares", [(1.0,), (0.5, 0.5), (-0.1,)])
def test_shares_that_leave_nothing_to_train_on_are_refused(shares: tuple[float, ...]) -> None:
    """Whatever their number."""
    with pytest.raises(UsageError, match="fractions"):
        split(10, shares, 0)


def test_labels_of_another_length_are_refused() -> None:
    """Rather than cut or repeated."""
    with pytest.raises(UsageError, match="10 samples"):
        split(10, (0.1,), 0, labels=[0, 1])
