"""Iterable datasets are fed in their own order and resume at any step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset

from flambeau.config.sections import LoaderSettings
from flambeau.data import Batch, EvalFeeder, Feeder
from flambeau.errors import UsageError


class Stream(IterableDataset[Any]):
    """Numbers epoch * 1000 + k, in an order drawn from the global generator."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.epoch = 0
        self.reads = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        for index in torch.randperm(self.size).tolist():
            self.reads += 1
            yield torch.tensor([1000 * self.epoch + index]), index


class Sized(Stream):
    def __len__(self) -> int:
        return self.size


class Stateful(Stream):
    """In order; goes on from its state instead of being read again."""

    position = 0

    def __iter__(self) -> Iterator[Any]:
        while self.position < self.size:
            self.position += 1
            self.reads += 1
            yield torch.tensor([1000 * self.epoch + self.position]), 0
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def jitter(sample: Any) -> Any:
    return sample[0] + torch.rand(1), sample[1]


def feeder(dataset: Any, workers: int = 0, **kwargs: Any) -> Feeder:
    settings = LoaderSettings(workers=workers, **kwargs)
    return Feeder(dataset, settings=settings, batch_size=4, seed=0, transform=jitter)


def values(batches: Any) -> list[Any]:
    return [(batch.inputs.flatten().tolist(), batch.ids.tolist()) for batch in batches]


@pytest.mark.parametrize("kind", [Stream, Sized, Stateful])
def test_a_stream_gives_each_pass_whole(kind: Any) -> None:
    """With the epoch told to the dataset, and the ragged batch at each pass's end."""
    train = feeder(kind(10))
    assert train.steps_per_epoch == (3 if kind is Sized else None)
    batches: list[Batch] = list(islice(train.batches(), 6))
    assert [batch.size for batch in batches] == [4, 4, 2] * 2
    epochs = [
        {int(value) // 1000 for value in torch.cat([b.inputs for b in part])} for part in (batches[:3], batches[3:])
    ]
    assert epochs == [{0}, {1}]


@pytest.mark.parametrize("kind", [Stream, Sized, Stateful])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_stream_resumes_at_any_step(kind: Any, drop_last: bool) -> None:
    """Random orders and transforms included, by reading up to the step."""
    whole = values(islice(feeder(kind(10), drop_last=drop_last).batches(), 8))
    for start in range(8):
        again = feeder(kind(10), drop_last=drop_last).batches(start)
        assert values(islice(again, 8 - start)) == whole[start:]


def test_a_sized_stream_does_not_read_the_epochs_before() -> None:
    """Only the epoch in which the step lies."""
    dataset = Sized(10)
    next(feeder(dataset).batches(301))
    assert dataset.reads == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_with_a_state_resumes_from_it_without_reading_again(workers: int) -> None:
    """The state is that after the last batch given, however far a process has read ahead."""
    whole = values(islice(feeder(Stateful(10)).batches(), 9))
    for stop in range(1, 8):
        train = feeder(Stateful(10), workers if stop == 4 else 0)
        batches = train.batches()
        list(islice(batches, stop))
        state = train.state_dict()
        train.close()
        dataset = Stateful(10)
        resumed = feeder(dataset)
        resumed.load_state_dict(state)
        rest = resumed.batches(stop)
        first = next(rest)
        assert dataset.reads <= 4
        assert [*values([first]), *values(islice(rest, 8 - stop))] == whole[stop:]


def test_a_worker_reads_the_same_stream() -> None:
    """One process whatever the number of workers, so that the order is the same."""
    whole = values(islice(feeder(Stream(10)).batches(), 7))
    train = feeder(Stream(10), workers=3)
    assert values(islice(train.batches(2), 5)) == whole[2:]
    train.close()


def test_a_stream_may_be_any_iterable() -> None:
    """A class with __iter__ and no __getitem__ is one, whatever it is derived from."""

    class Plain:
        def __iter__(self) -> Iterator[Any]:
            return ((float(number), number) for number in range(5))

    train = Feeder(Plain(), settings=LoaderSettings(), batch_size=4, seed=0)
    assert [batch.targets.tolist() for batch in islice(train.batches(1), 2)] == [[4], [0, 1, 2, 3]]


def test_a_stream_that_was_left_in_the_middle_begins_anew() -> None:
    """Its own state does not reach from one use into the next."""
    train = feeder(Stateful(10))
    first = values(islice(train.batches(), 2))
    assert values(islice(train.batches(), 2)) == first


@pytest.mark.parametrize("workers", [0, 1])
def test_an_evaluation_is_one_pass(workers: int) -> None:
    """The same each time."""
    evaluation = EvalFeeder(Sized(10), batch_size=4, workers=workers, transform=jitter)
    assert evaluation.num_samples == 10
    passes = [values(evaluation.batches()) for _ in range(2)]
    evaluation.close()
    assert passes[0] == passes[1]
    assert [ids for _, ids in passes[0]] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_stream_that_gives_another_number_of_samples_than_it_says_is_an_error() -> None:
    """The steps of an epoch would otherwise mean something else than the schedule thinks."""

    class Short(Sized):
        def __len__(self) -> int:
            return self.size + 2

    class Long(Sized):
        def __len__(self) -> int:
            return self.size - 2

    with pytest.raises(UsageError, match="has 8 samples, but a pass gave more"):
        list(islice(feeder(Long(10)).batches(), 4))
    with pytest.raises(UsageError, match="has 12 samples, but a pass gave only 10"):
        list(islice(feeder(Short(10)).batches(), 4))


def test_a_stream_without_samples_is_an_error_not_a_hang() -> None:
    """It would be read forever for the first batch."""
    with pytest.raises(UsageError, match="not one batch"):
        next(feeder(Stream(0)).batches())
    with pytest.raises(UsageError, match="0 samples"):
        feeder(Sized(0))
