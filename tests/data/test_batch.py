"""Samples become batches of the same shape; batches unpack, move and split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flambeau.data import Batch, collate
from flambeau.errors import UsageError


def batch_of(size: int) -> Batch:
    inputs = {"image": torch.arange(size * 2.0).view(size, 2), "name": [f"n{i}" for i in range(size)]}
    return Batch(inputs, torch.arange(size), np.arange(size), size)


def test_a_batch_unpacks_into_inputs_and_targets() -> None:
    """And its parts are had by name."""
    batch = batch_of(3)
    inputs, targets = batch
    assert inputs is batch.inputs is batch["inputs"]
    assert targets is batch.targets is batch["targets"]
    with pytest.raises(KeyError):
        batch["image"]


@given(st.integers(1, 40), st.integers(1, 50))
def test_micro_batches_are_contiguous_and_even(size: int, n: int) -> None:
    """Their sizes differ by at most one, and they share the batch's memory."""
    batch = batch_of(size)
    parts = batch.split(n)
    sizes = [part.size for part in parts]
    assert len(parts) == n
    assert max(sizes) - min(sizes) <= 1
    assert all(part.global_size == size for part in parts)
    full = [part for part in parts if part.size]
    assert torch.equal(torch.cat([part.targets for part in full]), batch.targets)
    assert [name for part in full for name in part.inputs["name"]] == batch.inputs["name"]
    assert np.concatenate([part.ids for part in parts]).tolist() == batch.ids.tolist()
    batch.inputs["image"][0, 0] = 7
    assert parts[0].inputs["image"][0, 0] == 7


def test_a_part_without_samples_borrows_the_first_row() -> None:
    """So that a model can be called with it; it counts nothing."""
    batch = batch_of(2)
    borrowed = batch.split(3)[2]
    assert borrowed.size == 0
    assert borrowed.ids.tolist() == []
    assert torch.equal(borrowed.inputs["image"], batch.inputs["image"][:1])


def test_moving_a_batch_leaves_host_data_on_the_host() -> None:
    """Only tensors go to the device."""
    moved = batch_of(3).to("meta")
    assert moved.inputs["image"].device.type == "meta"
    assert moved.inputs["name"] == ["n0", "n1", "n2"]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2], torch.int64),
        ([0.5, 2.0], torch.float32),
        ([1, 2.5], torch.float32),
        ([True, False], torch.bool),
        ([np.int32(1), np.int32(2)], torch.int32),
        ([np.float64(1), np.float64(2)], torch.float64),
        ([np.zeros(3, np.uint8)] * 2, torch.uint8),
        ([torch.zeros(3, dtype=torch.bfloat16)] * 2, torch.bfloat16),
    ],
)
def test_numbers_arrays_and_tensors_are_stacked_and_keep_their_type(values: list[Any], dtype: torch.dtype) -> None:
    """Python's floats become torch's default, float32, so that they fit the model."""
    inputs, targets = collate([(value, 0) for value in values])
    assert inputs.dtype is dtype
    assert inputs.shape[0] == len(targets) == 2


def test_nested_samples_keep_their_shape() -> None:
    """Dicts stay dicts; text, bytes and None stay lists on the host."""
    sample = {
        "inputs": {"image": torch.ones(2), "meta": {"file": "a.png", "size": (3, 4)}},
        "targets": {"label": 1, "note": None},
    }
    inputs, targets = collate([sample, sample])
    assert inputs["image"].shape == (2, 2)
    assert inputs["meta"] == {"file": ["a.png"] * 2, "size": [(3, 4)] * 2}
    assert targets["label"].tolist() == [1, 1]
    assert targets["note"] == [None, None]


@pytest.mark.parametrize("sample", [(1.0,), {"inputs": 1.0}, (1.0, None)])
def test_samples_may_have_no_targets(sample: Any) -> None:
    """The batch's targets are then None."""
    inputs, targets = collate([sample, sample])
    assert inputs.tolist() == [1.0, 1.0]
    assert targets is None


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "at least one sample"),
        ([torch.ones(2)], r"gave Tensor\(2,\) float32"),
        ([(1, 2, 3)], "a tuple of 3"),
        ([{"image": 1, "label": 2}], "'image', 'label'"),
        ([(torch.ones(2), 0), (torch.ones(3), 0)], r"'inputs' has shape \(2,\).*\(3,\) in number 1"),
        ([({"a": 1}, 0), ({"b": 1}, 0)], "the keys"),
        ([(1, 0), ("x", 0)], "'inputs' is int.*str in number 1"),
        ([(1, 0), (True, 0)], "bool in number 1"),
        ([(object(), 0)], "object, which cannot"),
        ([((torch.ones(1), torch.ones(1)), 0)], "as a dict"),
        ([(np.array(["a"]), 0)], "not numeric"),
    ],
)
def test_samples_that_make_no_batch_are_named(samples: list[Any], message: str) -> None:
    """The message says what was found, where, and what to do."""
    with pytest.raises(UsageError, match=f"(?s){message}"):
        collate(samples)
