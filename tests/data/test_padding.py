"""Samples of different lengths, and a data module's own way from samples to a batch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from flambeau.config.sections import LoaderSettings
from flambeau.data import EvalFeeder, Feeder, Padding, collate
from flambeau.errors import UsageError


class Ragged(Dataset[Any]):
    """Sample i is a row of i + 1 times i, and its label."""

    def __init__(self, size: int = 11) -> None:
        self.rows = [torch.full((index + 1,), index) for index in range(size)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return {"inputs": {"tokens": self.rows[index], "lengths": index + 1}, "targets": index}


class RaggedStream(IterableDataset[Any]):
    """The same, one after the other."""

    def __iter__(self) -> Iterator[Any]:
        data = Ragged()
        return (data[index] for index in range(len(data)))


PADDING = Padding({"inputs.tokens": -1})


def expected(ids: list[int]) -> torch.Tensor:
    """Rows of `ids`, padded with -1 to the longest."""
    length = max(ids) + 1
    return torch.tensor([[index] * (index + 1) + [-1] * (length - index - 1) for index in ids])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_batch_is_padded_to_its_own_longest(workers: int, rank: int) -> None:
    """Each process's share by itself; in evaluation each batch."""
    settings = LoaderSettings(workers=workers)
    feeder = Feeder(Ragged(), settings=settings, batch_size=4, seed=0, rank=rank, ranks=2, collate=PADDING)
    evaluation = EvalFeeder(Ragged(), batch_size=4, workers=workers, rank=rank, ranks=2, collate=PADDING)
    for batch in [*islice(feeder.batches(), 5), *evaluation.batches()]:
        assert torch.equal(batch.inputs["tokens"], expected(batch.ids.tolist()))
        assert batch.inputs["lengths"].tolist() == [index + 1 for index in batch.ids]
    feeder.close()
    evaluation.close()


def test_samples_of_an_iterable_dataset_are_padded_too() -> None:
    """In training and in evaluation."""
    feeder = Feeder(RaggedStream(), settings=LoaderSettings(), batch_size=4, seed=0, collate=PADDING)
    evaluation = EvalFeeder(RaggedStream(), batch_size=4, collate=PADDING)
    for batch in [*islice(feeder.batches(), 6), *evaluation.batches()]:
        assert torch.equal(batch.inputs["tokens"], expected(batch.ids.tolist()))


def test_a_collate_of_ones_own_is_used_for_data_held_in_tensors() -> None:
    """There is no faster way around it."""

    def doubled(samples: Any) -> Any:
        inputs, targets = collate(samples)
        return 2 * inputs, targets

    data = TensorDataset(torch.arange(10.0), torch.arange(10))
    for batch in islice(Feeder(data, settings=LoaderSettings(), batch_size=4, seed=0, collate=doubled).batches(), 3):
        assert batch.inputs.tolist() == [2.0 * index for index in batch.ids]


def test_a_batch_without_one_row_a_sample_is_refused() -> None:
    """Micro-batches are cut along the first dimension: a batch laid out otherwise would be cut wrongly."""

    def sideways(samples: Any) -> Any:
        inputs, targets = PADDING(samples)
        return inputs["tokens"].T, targets

    feeder = Feeder(Ragged(), settings=LoaderSettings(shuffle=False), batch_size=4, seed=0, collate=sideways)
    with pytest.raises(UsageError, match="made 8 rows of 4 samples"):
        next(feeder.batches(1))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=5))
def test_every_dimension_is_padded_at_its_end(shapes: list[tuple[int, int]]) -> None:
    """What was in a sample stands where it stood, the value everywhere else, and the sample is as it was."""
    samples = [(torch.rand(shape), np.zeros(shape, dtype=np.int64)) for shape in shapes]
    inputs, targets = Padding({"inputs": -1.0, "targets": -100})(samples)
    for (own, _), row, target in zip(samples, inputs, targets, strict=True):
        height, width = own.shape
        assert torch.equal(row[:height, :width], own)
        assert (row == -1).sum() == row.numel() - own.numel()
        assert (target == -100).sum() == target.numel() - own.numel()
    assert [tuple(own.shape) for own, _ in samples] == shapes


def test_the_datasets_own_samples_stay_as_they_are() -> None:
    """A dict that the dataset keeps is not written to."""
    samples = [{"inputs": {"tokens": torch.ones(size)}, "targets": 0} for size in (1, 3)]
    PADDING(samples)
    assert [len(sample["inputs"]["tokens"]) for sample in samples] == [1, 3]  # type: ignore[index,arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inputs.words": 0}, "no 'inputs.words' to pad.*it has tokens, lengths"),
        ({"inputs.tokens.ids": 0}, "no 'inputs.tokens.ids' to pad"),
        ({"inputs.lengths": 0}, "'inputs.lengths' is to be padded, and is no tensor or array but a int"),
    ],
)
def test_a_place_that_cannot_be_padded_is_named(values: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}"):
        Padding(values)([Ragged()[0], Ragged()[1]])


def test_samples_that_do_not_stack_are_told_of_the_way_out() -> None:
    """Without a collate, lengths that differ are an error that names it."""
    with pytest.raises(UsageError, match=r"(?s)shape \(1,\).*\(2,\).*flambeau.data.Padding"):
        collate([Ragged()[0], Ragged()[1]])
