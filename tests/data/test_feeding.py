"""Which samples form the batch of a step, and how they are transformed, is a function of the seed and the step."""

from __future__ import annotations

import random
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset, random_split

from flambeau.config.sections import LoaderSettings
from flambeau.data import ArrayDataset, Batch, EvalFeeder, Feeder
from flambeau.data.in_memory import as_arrays
from flambeau.errors import UsageError
from flambeau.runtime.seeds import derive, isolated, seed_all


class Counted(Dataset[Any]):
    """Sample i is (i, -i)."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([float(index)]), -index


class AtOnce(Counted):
    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices]


class Fetching(Counted):
    def fetch(self, indices: torch.Tensor) -> Any:
        return {"inputs": indices[:, None].float(), "targets": -indices}


def jitter(sample: Any) -> Any:
    """Draws from all three generators."""
    value, target = sample
    return value + torch.rand(1) + float(np.random.random()) + random.random(), target


def tensors(size: int) -> TensorDataset:
    return TensorDataset(torch.arange(float(size))[:, None], -torch.arange(size))


def subset(size: int) -> Subset[Any]:
    return Subset(Counted(2 * size), range(size))


KINDS = [tensors, Counted, AtOnce, Fetching, subset]


def feeder(dataset: Any, batch_size: int = 4, seed: int = 0, **kwargs: Any) -> Feeder:
    settings = {key: kwargs.pop(key) for key in list(kwargs) if hasattr(LoaderSettings(), key)}
    return Feeder(dataset, settings=LoaderSettings(**settings), batch_size=batch_size, seed=seed, **kwargs)


def ids(batches: Any) -> list[list[int]]:
    return [batch.ids.tolist() for batch in batches]


def same(a: Batch, b: Batch) -> bool:
    return a.ids.tolist() == b.ids.tolist() and torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_dataset_is_fed_in_the_same_order(kind: Any) -> None:
    """How a dataset is read changes nothing: inputs, targets and ids belong together."""
    expected = ids(islice(feeder(Counted(10)).batches(), 7))
    batches = list(islice(feeder(kind(10)).batches(), 7))
    assert ids(batches) == expected
    for batch in batches:
        assert batch.size == len(batch.ids)
        assert batch.inputs[:, 0].tolist() == batch.ids.tolist()
        assert batch.targets.tolist() == (-batch.ids).tolist()


@pytest.mark.parametrize("transform", [None, jitter])
@pytest.mark.parametrize("kind", KINDS)
def test_feeding_begins_at_any_step_with_the_same_batches(kind: Any, transform: Any) -> None:
    """Within an epoch and across its end."""
    whole = list(islice(feeder(kind(10), transform=transform).batches(), 9))
    for start in range(8):
        again = islice(feeder(kind(10), transform=transform).batches(start), 9 - start)
        assert all(same(a, b) for a, b in zip(again, whole[start:], strict=True))


@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (8, 4), (3, 4), (20_000, 7)])
@pytest.mark.parametrize("kind", [tensors, AtOnce])
def test_each_epoch_gives_each_sample_once_and_a_ragged_last_batch(kind: Any, size: int, batch_size: int) -> None:
    """Step s is batch s % steps_per_epoch of epoch s // steps_per_epoch."""
    train = feeder(kind(size), batch_size)
    steps = train.steps_per_epoch
    assert steps == -(-size // batch_size)
    batches = list(islice(train.batches(), 2 * steps))
    for epoch in (batches[:steps], batches[steps:]):
        assert sorted(index for batch in ids(epoch) for index in batch) == list(range(size))
        assert [batch.size for batch in epoch[:-1]] == [batch_size] * (steps - 1)
    assert ids(batches[:steps]) != ids(batches[steps:])


def test_a_small_last_batch_can_be_left_out() -> None:
    """An epoch is then the first whole batches of its order."""
    train = feeder(tensors(10), drop_last=True)
    assert train.steps_per_epoch == 2
    assert ids(islice(train.batches(), 2)) == ids(islice(feeder(tensors(10)).batches(), 2))
    assert ids(islice(train.batches(), 2, 4)) == ids(islice(feeder(tensors(10)).batches(), 3, 5))


def test_order_follows_the_seed() -> None:
    """Another seed, another order; without shuffling, the dataset's own."""
    orders = [ids(islice(feeder(tensors(50), seed=seed).batches(), 13)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    plain = ids(islice(feeder(tensors(5), shuffle=False).batches(), 4))
    assert plain == [[0, 1, 2, 3], [4], [0, 1, 2, 3], [4]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_augmented_by_seed_epoch_and_index_alone(kind: Any) -> None:
    """Neither the batch that it is in nor the kind of dataset has a part in it."""
    for batch_size in (3, 5):
        for step, batch in enumerate(islice(feeder(kind(10), batch_size, 8, transform=jitter).batches(), 5)):
            epoch = step // -(-10 // batch_size)
            for index, value in zip(batch.ids.tolist(), batch.inputs, strict=True):
                with isolated(derive(8, "augment", epoch, index)):
                    assert torch.equal(value, jitter((torch.tensor([float(index)]), 0))[0])


@pytest.mark.parametrize("kind", KINDS)
def test_reading_does_not_disturb_the_global_generators(kind: Any) -> None:
    """Neither in training nor in evaluation."""

    def draw() -> tuple[float, float, float]:
        return torch.rand(()).item(), float(np.random.random()), random.random()

    with isolated(0):
        seed_all(1)
        expected = draw()
        seed_all(1)
        list(islice(feeder(kind(10), transform=jitter).batches(), 3))
        list(EvalFeeder(kind(10), batch_size=3, transform=jitter).batches())
        assert draw() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_gives_each_sample_once_in_order(kind: Any) -> None:
    """Again and again, random transforms included."""
    evaluation = EvalFeeder(kind(10), batch_size=4, transform=jitter)
    passes = [list(evaluation.batches()) for _ in range(2)]
    assert evaluation.num_samples == 10
    assert ids(passes[0]) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert all(same(a, b) for a, b in zip(*passes, strict=True))


def test_an_empty_evaluation_gives_no_batches() -> None:
    """It is no error: a metric of nothing is the metric's own matter."""
    assert list(EvalFeeder(Counted(0), batch_size=4).batches()) == []


@pytest.mark.parametrize(("size", "drop_last"), [(0, False), (3, True)])
def test_training_data_without_one_batch_is_refused(size: int, drop_last: bool) -> None:
    """Before the first step."""
    with pytest.raises(UsageError, match=f"{size} samples"):
        feeder(Counted(size), drop_last=drop_last)


def test_the_batch_transform_sees_every_batch() -> None:
    """In training and in evaluation alike."""

    def double(batch: Batch) -> Batch:
        return batch.replace(inputs=2 * batch.inputs, targets=batch.targets)

    for batch in islice(feeder(tensors(10), batch_transform=double).batches(), 4):
        assert batch.inputs[:, 0].tolist() == (2 * batch.ids).tolist()
    evaluated = EvalFeeder(tensors(4), batch_size=4, batch_transform=double).batches()
    assert next(iter(evaluated)).inputs[:, 0].tolist() == [0, 2, 4, 6]


def test_writing_to_a_batch_changes_neither_the_data_nor_another_batch() -> None:
    """Models may work in place."""
    data = tensors(256)
    batches = feeder(data, 64).batches()
    first, second = next(batches), next(batches)
    kept = second.inputs.clone()
    first.inputs.fill_(-1)
    assert torch.equal(second.inputs, kept)
    next(EvalFeeder(data, batch_size=256).batches()).inputs.fill_(-1)
    assert torch.equal(data.tensors[0][:, 0], torch.arange(256.0))
    transformed = feeder(data, 4, transform=lambda sample: (sample[0].fill_(-1), sample[1])).batches()
    next(transformed)
    assert torch.equal(data.tensors[0][:, 0], torch.arange(256.0))


def test_batches_of_a_block_are_independent_for_autograd() -> None:
    """A write to one batch does not invalidate the graph of another."""
    batches = feeder(tensors(256), 64).batches()
    first, second = next(batches), next(batches)
    weight = torch.ones(1, requires_grad=True)
    loss = (first.inputs * weight).sum()
    second.inputs.add_(1)
    second.inputs.mul_(weight)
    loss.backward()
    assert weight.grad is not None


@pytest.mark.parametrize("width", [1, 16])
def test_every_batch_begins_where_an_allocation_could(width: int) -> None:
    """So that kernels chosen by alignment are the same for a batch however it was read."""
    data = TensorDataset(torch.rand(600, width), torch.arange(600))
    for batch_size in (1, 3, 24, 64):
        for batch in islice(feeder(data, batch_size).batches(), 30):
            assert batch.inputs.data_ptr() % 64 == 0
            assert batch.targets.data_ptr() % 64 == 0


def test_nested_arrays_are_fetched_whole() -> None:
    """Dicts of tensors keep their names; missing targets are None."""
    data = ArrayDataset({"a": torch.arange(10), "b": {"c": np.arange(10.0)}})
    batch = next(feeder(data).batches())
    assert batch.inputs["a"].tolist() == batch.inputs["b"]["c"].tolist() == batch.ids.tolist()
    assert batch.targets is None


def test_subsets_of_tensors_are_recognised_and_share_their_memory() -> None:
    """random_split and nested subsets of tensors are fed as fast as the tensors."""
    base = tensors(20)
    part = Subset(random_split(base, [15, 5], torch.Generator().manual_seed(0))[0], [3, 1, 4])
    arrays = as_arrays(part)
    assert arrays is not None
    assert arrays.inputs.data_ptr() == base.tensors[0].data_ptr()
    assert [float(arrays[i][0]) for i in range(3)] == [float(part[i][0]) for i in range(3)]


def test_a_dataset_with_a_way_of_its_own_is_not_bypassed() -> None:
    """A subclass that overrides __getitem__ is read through it."""

    class Negated(ArrayDataset):
        def __getitem__(self, index: int) -> Any:
            value, target = super().__getitem__(index)
            return -value, target

    class Shifted(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            value, target = super().__getitem__(index)
            return value + 100, target

    negated = next(feeder(Negated(torch.arange(10.0), torch.arange(10))).batches())
    assert negated.inputs.tolist() == (-negated.ids).tolist()
    shifted = next(feeder(Shifted(torch.arange(10.0), torch.arange(10))).batches())
    assert shifted.inputs.tolist() == (shifted.ids + 100).tolist()


def test_an_error_says_which_sample_it_was() -> None:
    """It is the user's own error, with a note."""

    def fail(sample: Any) -> Any:
        raise KeyError("label")

    with pytest.raises(KeyError, match="label") as raised:
        next(feeder(Counted(4), transform=fail).batches(1))
    assert raised.value.__notes__[0].startswith("while reading sample ")
    assert raised.value.__notes__[0].endswith("in epoch 1")


def test_arrays_of_different_lengths_are_refused() -> None:
    """Rather than fed until the shorter one ends."""
    with pytest.raises(UsageError, match=r"\[2, 3\]"):
        ArrayDataset(torch.zeros(2), torch.zeros(3))


def test_something_without_a_length_is_refused() -> None:
    """With the remedy."""
    with pytest.raises(UsageError, match="neither a length nor __iter__"):
        feeder(object())
