"""The order of samples as a function: which sample stands at position k of epoch e, without a shuffled list.

A permutation of `size` elements is computed element by element by a block cipher on the smallest power of two
that holds them, with *cycle-walking*: an output that is too large is enciphered again until it fits (Black
and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, section 3). The cipher is an alternating
Feistel network with unequal halves, keyed by the seed and the epoch (Mitchell, Stokes, Frank and Holmes,
"Bandwidth-optimal random shuffling for GPUs", ACM TOPC 2022; preprint arXiv:2106.06161).

A Feistel network mixes small domains slowly: with 3-bit blocks, 16 rounds still show in a chi-square test
over all orders, and Mitchell et al. take 24. With at least 8 bits, 6 rounds pass for every size that can be
enumerated; 12 are used. The numbers are in docs/decisions/0005-order-as-a-function.md.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from flambeau.runtime.seeds import derive

Indices = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

_ROUNDS = 12
_MIN_BITS = 8
_TABLE_BITS = 16  # domains up to this size are enciphered once, whole; 512 kB
_CHUNK = 1 << 14  # positions enciphered at a time above that, so that memory does not depend on the request
_MAX_SIZE = 1 << 62
_MULTIPLIER = np.uint64(0xD6E8_FEB8_6659_FD93)
_HALF_WORD = np.uint64(32)


class IndexStream:
    """The order of the samples in every epoch, a function of (size, seed, epoch).

    Args:
        size: number of samples, up to 2**62.
        seed: the seed of the run.
        shuffle: a new permutation in each epoch; False gives the order 0, 1, 2, ... in all.

    Memory does not grow with `size`, and any position is reached at once.
    """

    def __init__(self, size: int, seed: int, shuffle: bool = True) -> None:
        if not 0 <= size <= _MAX_SIZE:
            raise ValueError(f"size must lie between 0 and 2**62, not {size}")
        self.size = size
        self.seed = seed
        self.shuffle = shuffle

    def indices(self, epoch: int, start: int, stop: int) -> Indices:
        """The sample indices at positions `start` to `stop` (exclusive) of an epoch, int64."""
        if not 0 <= start <= stop <= self.size:
            raise IndexError(f"positions {start}..{stop} do not lie in an epoch of {self.size} samples")
        return self.at(epoch, np.arange(start, stop, dtype=np.int64))

    def at(self, epoch: int, positions: Indices) -> Indices:
        """The sample indices at `positions` (int64, each from 0 to `size`) of an epoch, int64."""
        if not self.shuffle:
            return positions.copy()
        bits = max(_MIN_BITS, (self.size - 1).bit_length())
        key = derive(self.seed, "order", epoch)
        if bits <= _TABLE_BITS:
            return _table_permutation(key, bits, self.size)[positions]
        order = np.empty(len(positions), dtype=np.uint64)
        for first in range(0, len(positions), _CHUNK):
            chunk = positions[first : first + _CHUNK].view(np.uint64)
            order[first : first + len(chunk)] = _walk(key, bits, self.size, chunk)
        return order.view(np.int64)

    def __repr__(self) -> str:
        return f"IndexStream(size={self.size}, seed={self.seed}, shuffle={self.shuffle})"


@lru_cache(maxsize=4)
def _table_permutation(key: int, bits: int, size: int) -> Indices:
    """The whole permutation of a small set; the walk is then a look-up instead of another encryption."""
    table = _encipher(np.arange(1 << bits, dtype=np.uint64), key, bits).view(np.int64)
    order = table[:size].copy()
    outside = np.flatnonzero(order >= size)
    while outside.size:
        order[outside] = table[order[outside]]
        outside = outside[order[outside] >= size]
    return order


def _walk(key: int, bits: int, size: int, positions: _Words) -> _Words:
    order = _encipher(positions, key, bits)
    limit = np.uint64(size)
    outside = np.flatnonzero(order >= limit)
    while outside.size:
        order[outside] = _encipher(order[outside], key, bits)
        outside = outside[order[outside] >= limit]
    return order


def _encipher(blocks: _Words, key: int, bits: int) -> _Words:
    """Encipher blocks of `bits` bits: a bijection of [0, 2**bits)."""
    low_bits = np.uint64(bits // 2)
    low = blocks & np.uint64((1 << (bits // 2)) - 1)
    high = blocks >> low_bits
    word = np.empty_like(blocks)
    spare = np.empty_like(blocks)
    for number, (factor, offset) in enumerate(_round_keys(key)):
        source, target, width = (low, high, bits - bits // 2) if number % 2 == 0 else (high, low, bits // 2)
        # The round function: multiply-add with a random odd factor (pairwise independent, Dietzfelbinger
        # 1996), then one xorshift-multiply against its linearity; the top bits are the best mixed ones.
        np.multiply(source, factor, out=word)
        np.add(word, offset, out=word)
        np.right_shift(word, _HALF_WORD, out=spare)
        np.bitwise_xor(word, spare, out=word)
        np.multiply(word, _MULTIPLIER, out=word)
        np.right_shift(word, np.uint64(64 - width), out=word)
        np.bitwise_xor(target, word, out=target)
    return high << low_bits | low


@lru_cache(maxsize=16)
def _round_keys(key: int) -> tuple[tuple[np.uint64, np.uint64], ...]:
    return tuple(
        (np.uint64(derive(key, "factor", number) << 1 | 1), np.uint64(derive(key, "offset", number) << 1))
        for number in range(_ROUNDS)
    )
