"""Seeds: every random stream of a run is derived from the run's one seed and a path that says what it is for.

`derive(seed, "augment", epoch, index)` is a pure function, equal on every machine and in every process, so a
stream can be reached without replaying the ones before it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch

HostState = tuple[Any, ...]

_WORD = 0xFFFF_FFFF_FFFF_FFFF
_GAMMA = 0x9E37_79B9_7F4A_7C15


def mix(word: int) -> int:
    """The output function of SplitMix64 (Steele, Lea and Flood, 2014): a bijection of 64-bit words."""
    word = ((word ^ (word >> 30)) * 0xBF58_476D_1CE4_E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D0_49BB_1331_11EB) & _WORD
    return word ^ (word >> 31)


@lru_cache(maxsize=1024)
def _word_of(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def derive(seed: int, *path: int | str) -> int:
    """A seed for one purpose: a number in [0, 2**63) that depends on `seed` and on each element of `path`.

    >>> derive(0, "order", 3) == derive(0, "order", 3) != derive(0, "order", 4)
    True
    """
    state = mix((seed + _GAMMA) & _WORD)
    for element in path:
        word = _word_of(element) if isinstance(element, str) else element
        state = mix(((state ^ (word & _WORD)) + _GAMMA) & _WORD)
    return state >> 1


def seed_all(value: int) -> None:
    """Seed the global generators of torch (every device), numpy and `random`."""
    torch.manual_seed(value)
    seed_numpy_and_random(value)


def seed_host(value: int) -> None:
    """Seed the global generators of the host alone: torch's on the CPU, numpy's and `random`'s; 5 µs."""
    torch.default_generator.manual_seed(value)
    seed_numpy_and_random(value)


def seed_numpy_and_random(value: int) -> None:
    """Seed the global generators of numpy and `random`."""
    np.random.seed(value & 0xFFFF_FFFF)
    random.seed(value)


def host_state() -> HostState:
    """The state of the host's global generators; 25 µs and 30 kB."""
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def set_host_state(state: HostState) -> None:
    """Put the host's global generators where they were."""
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])
    random.setstate(state[2])


@contextmanager
def host_generators_kept() -> Iterator[None]:
    """Leave the host's global generators as they were, whatever is seeded or drawn inside."""
    state = host_state()
    try:
        yield
    finally:
        set_host_state(state)


@contextmanager
def isolated(value: int) -> Iterator[None]:
    """Run a block with every global generator seeded, and put the generators back after it.

    The accelerator's generators are included once CUDA is in use; before that there is nothing to put back.
    """
    cuda_in_use: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    on_cuda = torch.cuda.get_rng_state_all() if cuda_in_use else []
    with host_generators_kept():
        seed_host(value)
        if on_cuda:
            torch.cuda.manual_seed_all(value)
        try:
            yield
        finally:
            if on_cuda:
                torch.cuda.set_rng_state_all(on_cuda)
