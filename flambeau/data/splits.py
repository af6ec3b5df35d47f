"""Splits of a dataset as a function of the seed: the same on every machine, process and restart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flambeau.data.index_stream import IndexStream, Indices
from flambeau.errors import UsageError
from flambeau.runtime.seeds import derive


def split(
    size: int, fractions: Sequence[float], seed: int, *, labels: Sequence[Any] | np.ndarray[Any, Any] | None = None
) -> list[Indices]:
    """Divide the indices 0..size-1 at random into disjoint parts.

    Args:
        size: number of samples.
        fractions: the share of each part after the first, each in [0, 1); the first part gets the rest.
        seed: what the division is a function of.
        labels: class of each sample; if given, each part gets its share of every class, rounded up or down.

    Returns:
        One sorted int64 array of indices a part: the rest first, then the parts in the order of `fractions`.
        The parts have `round(fraction * size)` samples, as long as there are so many left.

    Example:
        `train, val, test = split(1797, (0.15, 0.15), seed=0, labels=digits)`
    """
    if any(not 0 <= fraction < 1 for fraction in fractions) or sum(fractions) >= 1:
        raise UsageError(f"split fractions must be at least 0 and sum to less than 1, not {list(fractions)}")
    order = IndexStream(size, derive(seed, "split")).indices(0, 0, size)
    if labels is None:
        classes = [order]
    else:
        classes = _by_class(order, np.asarray(labels))
    room = np.array([len(members) for members in classes], dtype=np.int64)
    taken = np.zeros_like(room)
    parts = []
    for fraction in fractions:
        wanted = min(round(fraction * size), int((room - taken).sum()))
        share = _apportion(fraction * room, room - taken, wanted)
        chosen = [members[a : a + n] for members, a, n in zip(classes, taken, share, strict=True)]
        parts.append(_sorted(chosen))
        taken += share
    return [_sorted([members[a:] for members, a in zip(classes, taken, strict=True)]), *parts]


def _by_class(order: Indices, labels: np.ndarray[Any, Any]) -> list[Indices]:
    """The members of each class, in the given order."""
    if labels.shape != order.shape:
        raise UsageError(f"a stratified split needs one label for each of {len(order)} samples, not {labels.shape}")
    _, counts = np.unique(labels, return_counts=True)
    grouped = order[np.argsort(labels[order], kind="stable")]
    return np.split(grouped, np.cumsum(counts)[:-1])


def _apportion(quotas: npt.NDArray[np.floating[Any]], room: Indices, wanted: int) -> Indices:
    """Whole numbers that sum to `wanted`: each quota rounded down, then one more where most is missing.

    The method of largest remainders (Hamilton), held to what each class has left.
    """
    share: Indices = np.minimum(np.floor(quotas).astype(np.int64), room)
    while share.sum() < wanted:
        missing = np.where(share < room, quotas - share, -np.inf)
        share[missing.argmax()] += 1
    return share


def _sorted(groups: list[Indices]) -> Indices:
    return np.sort(np.concatenate(groups)) if groups else np.empty(0, dtype=np.int64)
