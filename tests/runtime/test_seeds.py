"""Seeds are functions of the run's seed and of what they are for."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from flambeau.runtime.seeds import derive, isolated, seed_all

elements = st.one_of(st.integers(-(2**63), 2**64), st.text(max_size=12))


def drawn() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.random()), random.random()


def test_derived_seeds_are_the_same_on_every_machine() -> None:
    """These numbers are the contract: a change of them changes the data order of every existing run."""
    assert derive(0) == 0xE220A8397B1DCDAF >> 1  # the first output of SplitMix64 from 0
    assert derive(0, "order", 3) == 8075692967241655478
    assert derive(7, "augment", 2, 10**12) == 3200790321433256851


def test_derived_seeds_do_not_depend_on_the_process() -> None:
    """Text is not hashed by Python's own hash, which differs from process to process."""
    code = "from flambeau.runtime.seeds import derive; print(derive(1, 'augment', 2, 3))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) == derive(1, "augment", 2, 3)


@given(st.integers(-(2**63), 2**64), st.lists(elements, max_size=4))
def test_a_derived_seed_fits_every_generator(seed: int, path: list[int | str]) -> None:
    """The range is that of torch.Generator.manual_seed and of a positive int64."""
    assert 0 <= derive(seed, *path) < 2**63


def test_seeds_of_neighbouring_paths_differ_in_half_of_their_bits() -> None:
    """Epochs, indices and seeds count up by one; their seeds must have nothing in common."""
    values = [derive(seed, "augment", epoch, index) for seed in range(8) for epoch in range(8) for index in range(64)]
    assert len(set(values)) == len(values)
    changed = [(a ^ b).bit_count() for a, b in pairwise(values)]
    assert abs(np.mean(changed) - 31.5) < 0.3


def test_the_order_and_the_length_of_a_path_matter() -> None:
    """Two purposes never share a stream because their paths look alike."""
    seeds = [
        derive(0),
        derive(0, 0),
        derive(0, 0, 0),
        derive(0, 1, 2),
        derive(0, 2, 1),
        derive(0, "1", 2),
        derive(1, 0),
    ]
    assert len(set(seeds)) == len(seeds)


def test_seed_all_seeds_torch_numpy_and_random() -> None:
    """The same seed gives the same draws from all three."""
    with isolated(0):
        seed_all(5)
        first = drawn()
        seed_all(5)
        assert drawn() == first
        seed_all(6)
        assert all(a != b for a, b in zip(drawn(), first, strict=True))


def test_an_isolated_block_is_seeded_and_leaves_the_generators_as_they_were() -> None:
    """What happens inside cannot be seen outside, even if it fails."""
    with isolated(1):
        seed_all(3)
        undisturbed = [drawn() for _ in range(2)]
        seed_all(3)
        assert drawn() == undisturbed[0]
        with isolated(9):
            inside = drawn()
        try:
            with isolated(9):
                assert drawn() == inside
                raise KeyError
        except KeyError:
            pass
        assert drawn() == undisturbed[1]
