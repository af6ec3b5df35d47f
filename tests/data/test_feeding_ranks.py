"""Several processes feed the batches of one: each its share, in all four ways in which data is read."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from flambeau.config.sections import LoaderSettings
from flambeau.data import Batch, EvalFeeder, Feeder


class Counted(Dataset[Any]):
    """Sample i is (i, -i); notes what is read."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.reads: list[int] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        self.reads.append(index)
        return torch.tensor([float(index)]), -index


class Endless(IterableDataset[Any]):
    """A pass of `size` samples, which it does not say; draws while it reads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        for index in torch.randperm(self.size).tolist():
            yield torch.tensor([1000.0 * self.epoch + index]) + torch.rand(1) / 8, random.random()


class Sized(Endless):
    def __len__(self) -> int:
        return self.size


class Stateful(Endless):
    position = 0

    def __iter__(self) -> Iterator[Any]:
        while self.position < self.size:
            self.position += 1
            yield torch.tensor([1000.0 * self.epoch + self.position]) + torch.rand(1) / 8, random.random()
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Jitter:
    """Draws from all three generators; counts the samples that it sees."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, sample: Any) -> Any:
        self.calls += 1
        value, target = sample
        return value + torch.rand(1) + float(np.random.random()) + random.random(), target


def tensors(size: int) -> TensorDataset:
    return TensorDataset(torch.arange(float(size))[:, None], -torch.arange(size))


KINDS = [tensors, Counted, Endless, Sized, Stateful]
STREAMS = [Endless, Sized, Stateful]


def feeders(kind: Any, size: int, batch_size: int, ranks: int, **kwargs: Any) -> list[Feeder]:
    transform = kwargs.pop("transform", None)
    loader = LoaderSettings(**kwargs)
    return [
        Feeder(kind(size), settings=loader, batch_size=batch_size, seed=5, transform=transform, rank=rank, ranks=ranks)
        for rank in range(ranks)
    ]


def together(parts: list[Batch]) -> tuple[list[int], list[float], list[float]]:
    """Ids, inputs and targets of the processes' parts of one batch, in the order of the processes."""
    held = [(batch.inputs[: batch.size], batch.targets[: batch.size], batch.ids) for batch in parts]
    return (
        [index for part in held for index in part[2].tolist()],
        torch.cat([part[0] for part in held]).flatten().tolist(),
        torch.cat([part[1] for part in held]).tolist(),
    )


def stream_of(feeders: list[Feeder], start: int, steps: int) -> list[Any]:
    return [together(list(parts)) for parts in zip(*(islice(f.batches(start), steps) for f in feeders), strict=True)]


@pytest.mark.parametrize("transform", [None, Jitter()])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(size=st.integers(1, 40), batch_size=st.integers(1, 14), ranks=st.integers(2, 5), start=st.integers(0, 9))
def test_processes_together_feed_the_same_stream_as_one(
    kind: Any, transform: Any, size: int, batch_size: int, ranks: int, start: int
) -> None:
    """To the last bit, random reads and transforms and the ragged ends of streams of unknown length included."""
    one = feeders(kind, size, batch_size, 1, transform=transform)
    several = feeders(kind, size, batch_size, ranks, transform=transform)
    assert stream_of(several, start, 7) == stream_of(one, start, 7)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_batch_says_how_many_samples_all_processes_have_and_holds_a_row(kind: Any, drop_last: bool) -> None:
    """Also where a batch has fewer samples than there are processes."""
    for batches in zip(*(islice(f.batches(), 8) for f in feeders(kind, 10, 4, 3, drop_last=drop_last)), strict=True):
        sizes = [batch.size for batch in batches]
        assert sizes in [[2, 1, 1], [1, 1, 0]]
        for batch in batches:
            assert batch.global_size == sum(sizes)
            assert len(batch.ids) == batch.size
            assert len(batch.inputs) == len(batch.targets) == max(batch.size, 1)
        if not sizes[2]:
            assert torch.equal(batches[2].inputs, batches[0].inputs[:1])
            assert torch.equal(batches[2].targets, batches[0].targets[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_another_number_of_processes_goes_on_with_the_same_samples(kind: Any) -> None:
    """Two, then three, then one; the feeder's state of the rank that saved serves all."""
    expected = stream_of(feeders(kind, 10, 4, 1, transform=Jitter()), 0, 12)
    seen, state = [], {}
    for ranks in (2, 3, 1):
        several = feeders(kind, 10, 4, ranks, transform=Jitter())
        for feeder in several:
            feeder.load_state_dict(state)
        seen += stream_of(several, len(seen), 4)
        states = [feeder.state_dict() for feeder in several]
        assert all(one == states[0] for one in states)
        state = states[0]
    assert seen == expected


@pytest.mark.parametrize("kind", [Counted, Sized])
def test_workers_read_the_same_shares(kind: Any) -> None:
    """Bit for bit."""
    expected = stream_of(feeders(kind, 10, 4, 3, transform=Jitter()), 1, 6)
    several = feeders(kind, 10, 4, 3, transform=Jitter(), workers=1)
    assert stream_of(several, 1, 6) == expected
    for feeder in several:
        feeder.close()


def test_a_process_reads_its_share_alone() -> None:
    """Of a map-style dataset; and the row that it borrows."""
    dataset = Counted(9)
    feeder = Feeder(dataset, settings=LoaderSettings(shuffle=False), batch_size=6, seed=0, rank=3, ranks=4)
    list(islice(feeder.batches(), 2))
    assert dataset.reads == [5, 6]


@pytest.mark.parametrize("kind", STREAMS)
def test_a_process_transforms_its_share_of_a_stream_alone(kind: Any) -> None:
    """Though it reads all: of 42 samples half; at an end that nobody foresaw perhaps some that were not its own."""
    for rank in range(2):
        jitter = Jitter()
        train = Feeder(kind(42), settings=LoaderSettings(), batch_size=4, seed=0, transform=jitter, rank=rank, ranks=2)
        list(islice(train.batches(), 11))
        assert jitter.calls - 21 in ([0] if kind is Sized else [0, 1])


def evaluations(kind: Any, size: int, batch_size: int, ranks: int, **kwargs: Any) -> list[EvalFeeder]:
    return [EvalFeeder(kind(size), batch_size=batch_size, rank=rank, ranks=ranks, **kwargs) for rank in range(ranks)]


def numbered(feeder: EvalFeeder) -> list[tuple[int, Any]]:
    return [(number, together([batch])) for number, batch in zip(feeder.numbers(), feeder.batches(), strict=False)]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(size=st.integers(0, 40), batch_size=st.integers(1, 14), ranks=st.integers(2, 6))
def test_an_evaluation_by_several_processes_has_the_batches_of_one(
    kind: Any, size: int, batch_size: int, ranks: int
) -> None:
    """Each batch is whole in one process and has the number that it has there: no sample twice, none left out."""
    parts = [numbered(part) for part in evaluations(kind, size, batch_size, ranks, transform=Jitter())]
    assert sorted(batch for part in parts for batch in part) == numbered(
        evaluations(kind, size, batch_size, 1, transform=Jitter())[0]
    )
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    ids = [index for part in parts for _, (some, _, _) in part for index in some]
    assert sorted(ids) == list(range(size))


@pytest.mark.parametrize("size", [97, 1797])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_ids_of_an_evaluation_are_the_data_set(size: int, ranks: int) -> None:
    """In the dataset's order, process after process: of map-style data each has consecutive batches."""
    ids = [batch.ids for part in evaluations(tensors, size, 32, ranks) for batch in part.batches()]
    assert np.concatenate(ids).tolist() == list(range(size))


@pytest.mark.parametrize("kind", [Counted, Sized])
def test_a_process_without_a_batch_evaluates_nothing(kind: Any) -> None:
    """Also with worker processes, and once more."""
    feeder = evaluations(kind, 5, 4, 3, workers=1)[2]
    assert list(feeder.batches()) == list(feeder.batches()) == []
    feeder.close()
