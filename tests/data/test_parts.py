"""A run takes a part of its data if it is told to, and keeps training, validation and test apart."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from support.projects import InProcess
from support.tasks import make_trainer, points
from torch.utils.data import IterableDataset, Subset, TensorDataset, random_split

from flambeau.config.sections import LoaderSettings
from flambeau.data import ArrayDataset, Feeder
from flambeau.data.parts import classes_of, in_common, limited, require_disjoint
from flambeau.errors import UsageError


class Mapped:
    def __init__(self, size: int) -> None:
        self.targets = [index % 4 for index in range(size)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        return float(index), self.targets[index]


class Stream(IterableDataset[Any]):
    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def __iter__(self) -> Iterator[Any]:
        return iter([float(k) for k in range(self.size or 20)])


class Sized(Stream):
    def __len__(self) -> int:
        return self.size or 20


class Resumable(Sized):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.at = 0

    def __iter__(self) -> Iterator[Any]:
        while self.at < len(self):
            self.at += 1
            yield torch.tensor(float(self.at - 1)), 0
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def arrays(size: int) -> ArrayDataset:
    return ArrayDataset(torch.arange(float(size)), torch.arange(size) % 4)


SETS = [arrays(400), Mapped(400), Subset(Mapped(800), range(0, 800, 2)), TensorDataset(torch.zeros(400))]


@pytest.mark.parametrize("dataset", SETS)
@pytest.mark.parametrize("limit", [40, 0.1])
def test_a_limit_takes_so_many_samples_by_the_seed(dataset: Any, limit: Any) -> None:
    """A number or a share; the same again, others by another seed."""
    chosen = limited(dataset, limit, 1)
    assert len(chosen) == 40
    again, other = limited(dataset, limit, 1), limited(dataset, limit, 2)
    samples = [[sample[0] for sample in (part[i] for i in range(40))] for part in (chosen, again, other)]
    assert samples[0] == samples[1]
    if not isinstance(dataset, TensorDataset):
        assert samples[0] != samples[2]
        assert len(set(map(float, samples[0]))) == 40


def test_a_limit_keeps_the_classes_in_proportion() -> None:
    """Where they are known: of tensors, of a list, and of a subset of them."""
    for dataset in (arrays(400), Mapped(400), arrays(800).subset(range(400)), Subset(Mapped(800), range(400))):
        assert classes_of(dataset).tolist() == [k % 4 for k in range(400)]
        assert np.bincount(classes_of(limited(dataset, 42, 3))).min() >= 10


def test_the_first_samples_of_a_stream() -> None:
    """Of each pass; a share needs a length, and a length stays known."""
    assert list(limited(Stream(), 5, 0)) == [0, 1, 2, 3, 4]
    assert not hasattr(limited(Stream(), 5, 0), "__len__")
    assert len(limited(Sized(), 5, 0)) == len(limited(Sized(), 0.25, 0)) == 5
    with pytest.raises(UsageError, match="length is not known"):
        limited(Stream(), 0.5, 0)


def test_a_limited_stream_goes_on_from_its_state() -> None:
    """In the middle of a pass, not reading from its beginning."""

    def feeder() -> Feeder:
        return Feeder(limited(Resumable(50), 10, 0), settings=LoaderSettings(), batch_size=4, seed=0)

    whole = [batch.inputs.tolist() for batch in islice(feeder().batches(), 7)]
    assert whole[:4] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [0, 1, 2, 3]]
    first = feeder()
    for _ in islice(first.batches(), 5):
        pass
    second = feeder()
    second.load_state_dict(first.state_dict())
    assert [batch.inputs.tolist() for batch in islice(second.batches(5), 2)] == whole[5:]


def test_a_share_of_less_than_one_sample_is_refused() -> None:
    """A run on nothing says nothing."""
    with pytest.raises(UsageError, match="is not one"):
        limited(arrays(4), 0.1, 0)


def test_each_part_has_a_limit_of_its_own(flambeau: InProcess) -> None:
    """In a run, and when it is evaluated afterwards."""
    limits = ("data.limit=0.5", "data.limit_val=7", "data.limit_test=5")
    answer = flambeau("train", "tiny", "--run-dir", "run", "trainer.epochs=1", *limits)
    assert "46 train, 7 validation, 5 test samples; 6 steps of 8" in answer.out
    assert "test: 5 samples" in flambeau("evaluate", "run", "--split", "test").out
    assert make_trainer(limit=9).total_steps == 2


def test_parts_that_share_samples_are_found() -> None:
    """The same object, rows of the same arrays, subsets of one dataset; copies are not looked for."""
    data, mapped = arrays(10), Mapped(10)
    assert in_common(data, data) == 10
    assert in_common(data.subset([0, 1, 2]), data.subset([2, 3])) == 1
    assert in_common(data.subset([0, 1]), data.subset([2, 3])) == 0
    assert in_common(TensorDataset(data.inputs), data) == 0
    assert in_common(Subset(mapped, [1, 2, 3]), Subset(Subset(mapped, [3, 2, 0]), [0, 1])) == 2
    assert in_common(mapped, Mapped(10)) == 0
    stream = Stream()
    assert in_common(stream, stream) and not in_common(stream, Stream())
    first, second = random_split(points(), [10, 10])
    assert in_common(first, second) == 0 and in_common(first, first.dataset) == 10


def test_each_pair_is_allowed_in_words_of_its_own() -> None:
    """And by no other's."""
    data = arrays(8)
    parts = {"train": data.subset(range(6)), "val": data.subset([6, 7]), "test": data.subset([7])}
    with pytest.raises(UsageError, match=r"1 of the validation samples are test samples too"):
        require_disjoint(LoaderSettings(val_is_train=True, test_is_train=True), **parts)
    require_disjoint(LoaderSettings(val_is_test=True), **parts)
    with pytest.raises(UsageError, match=r"all of the test samples are training samples.*\n.*test_is_train: true"):
        require_disjoint(LoaderSettings(), train=data, val=None, test=data.subset([1]))


SAME = """

@register.data("same")
class Same(DataModule):
    def __init__(self, seed: int = 0) -> None:
        self.train = Points(seed=0).train
        self.val = self.test = Points(seed=1).test
"""


def test_a_run_does_not_choose_its_model_by_the_test(flambeau: InProcess) -> None:
    """Validation is the test set only where the configuration says so."""
    path = next(flambeau.project.root.glob("parts_*.py"))
    path.write_text(path.read_text() + SAME)
    options = ("train", "tiny", "data.name=same", "model.num_classes=3", "trainer.epochs=1")
    answer = flambeau(*options, "--run-dir", "a", expect=2)
    assert "all of the validation samples are test samples too" in answer.err
    assert "data.val_is_test: true" in answer.err
    assert not (flambeau.project.root / "a").exists()
    flambeau(*options, "--run-dir", "b", "data.val_is_test=true")


def test_parts_of_one_dataset_have_transforms_of_their_own() -> None:
    """The training part is augmented, the validation part of the same dataset is not."""
    whole = Mapped(20)
    train, val = Subset(whole, range(15)), Subset(whole, range(15, 20))
    seen: dict[str, set[float]] = {"train": set(), "eval": set()}

    def noting(part: str) -> Any:
        def note(sample: Any) -> Any:
            seen[part].add(sample[0])
            return torch.full((4,), sample[0]), sample[1] % 3

        return note

    make_trainer(
        train_data=train,
        val_data=val,
        train_transform=noting("train"),
        eval_transform=noting("eval"),
        dry_batch=False,
    ).fit()
    assert seen == {"train": {float(k) for k in range(15)}, "eval": {float(k) for k in range(15, 20)}}


def test_an_epoch_of_augmentation_leaves_the_data_as_they_were() -> None:
    """Even if a transform writes to what it is given: it is given a copy."""
    data = arrays(16)
    before = data.inputs.clone()

    def written(sample: Any) -> Any:
        sample[0].add_(100)
        return torch.full((4,), float(sample[0])), sample[1] % 3

    def written_batch(batch: Any) -> Any:
        batch.inputs.mul_(0)
        return batch

    make_trainer(train_data=data, train_transform=written, train_batch_transform=written_batch, epochs=2).fit()
    assert torch.equal(data.inputs, before)
    pairs = ArrayDataset(torch.rand(16, 4), torch.arange(16) % 3)
    kept = pairs.inputs.clone()
    make_trainer(train_data=pairs, val_data=pairs, batch_transform=written_batch, epochs=2).fit()
    assert torch.equal(pairs.inputs, kept)
