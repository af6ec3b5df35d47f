"""The parts of a data module, as a run takes them: limited, and kept apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, Subset

from flambeau.config.sections import LoaderSettings
from flambeau.data.in_memory import ArrayDataset, as_arrays
from flambeau.data.index_stream import Indices
from flambeau.data.reading import unwrap
from flambeau.data.splits import split
from flambeau.data.streaming import is_stream
from flambeau.errors import UsageError
from flambeau.runtime.seeds import derive

PARTS = ("train", "val", "test")


def limit_parts(settings: LoaderSettings, seed: int, train: Any, val: Any, test: Any) -> tuple[Any, Any, Any]:
    """The training, validation and test data, with as many samples as `limit`, `limit_val` and `limit_test` say."""
    limits = (settings.limit, settings.limit_val, settings.limit_test)
    names = ("limit", "limit_val", "limit_test")
    given = zip((train, val, test), limits, names, PARTS, strict=True)
    train, val, test = (limited(data, limit, derive(seed, "limit", part), name) for data, limit, name, part in given)
    return train, val, test


def limited(dataset: Any, limit: int | float | None, seed: int, name: str = "limit") -> Any:
    """Some samples of a dataset: the same in every process and after every resume.

    Args:
        dataset: map-style, of which samples are chosen at random, of each class its share where the classes are known
            (an attribute `targets` of whole numbers); or iterable, of which each pass gives the first ones.
        limit: a number of samples, or a share of them, in (0, 1]; None for all.
        seed: what the choice is a function of.

    Raises:
        UsageError: a share of an iterable dataset without a length, or a share that is not one sample.
    """
    if dataset is None or limit is None:
        return dataset
    size = len(dataset) if hasattr(dataset, "__len__") else None
    if isinstance(limit, float):
        if size is None:
            raise UsageError(
                f"data.{name}: {limit} of data whose length is not known", remedy="give a number of samples"
            )
        if round(limit * size) < 1:
            raise UsageError(f"data.{name}: {limit} of {size} samples is not one", remedy="give a greater share")
        limit = round(limit * size)
    if size is not None and limit >= size:
        return dataset
    if is_stream(dataset):
        kinds = (_FirstOfState, _SizedFirstOfState) if hasattr(dataset, "state_dict") else (_First, _SizedFirst)
        return kinds[size is not None](dataset, limit)
    assert size is not None
    chosen = split(size, (limit / size,), seed, labels=classes_of(dataset))[1]
    arrays = as_arrays(dataset)
    return arrays.subset(chosen) if arrays is not None else Subset(dataset, chosen.tolist())


def classes_of(dataset: Any) -> Indices | None:
    """The class of each sample of a map-style dataset, where an attribute `targets` of whole numbers says it."""
    base, positions = unwrap(dataset)
    targets = getattr(base, "targets", None)
    if isinstance(targets, torch.Tensor):
        targets = targets.cpu().numpy()
    elif isinstance(targets, list) and targets and all(isinstance(target, int) for target in targets):
        targets = np.asarray(targets)
    if not isinstance(targets, np.ndarray) or targets.ndim != 1 or targets.dtype.kind not in "iu":
        return None
    if isinstance(base, ArrayDataset) and base.rows is not None:
        targets = targets[base.rows.cpu().numpy()]
    targets = targets if positions is None else targets[positions]
    return targets if len(targets) == len(dataset) else None


class _First(IterableDataset[Any]):
    """The first samples of each pass over an iterable dataset."""

    def __init__(self, dataset: Any, limit: int) -> None:
        self.dataset = dataset
        self.limit = limit
        self._given = 0

    def __iter__(self) -> Iterator[Any]:
        for sample in islice(iter(self.dataset), self.limit - self._given):
            self._given += 1
            yield sample
        self._given = 0

    def set_epoch(self, epoch: int) -> None:
        self._given = 0
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)


class _FirstOfState(_First):
    """The same of a dataset that can be put where it was."""

    def state_dict(self) -> dict[str, Any]:
        return {"given": self._given, "dataset": self.dataset.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._given = state["given"]
        self.dataset.load_state_dict(state["dataset"])


class _Sized:
    """An iterable dataset was longer than its limit, and said so."""

    limit: int

    def __len__(self) -> int:
        return self.limit


class _SizedFirst(_Sized, _First):
    pass


class _SizedFirstOfState(_Sized, _FirstOfState):
    pass


def require_disjoint(settings: LoaderSettings, *, train: Any, val: Any, test: Any) -> None:
    """Refuse parts that have samples in common, as far as that shows without reading them.

    It shows of the same object, of rows of the same arrays, of subsets of one dataset, and of datasets whose attribute
    `sources` says where each sample comes from.

    Raises:
        UsageError: they have some, and the configuration does not say in words that it is meant.
    """
    pairs = (
        ("validation", val, "training", train, "val_is_train", settings.val_is_train),
        ("validation", val, "test", test, "val_is_test", settings.val_is_test),
        ("test", test, "training", train, "test_is_train", settings.test_is_train),
    )
    for first, data, second, other, key, meant in pairs:
        common = 0 if data is None or other is None or meant else in_common(data, other)
        if common:
            counted = str(common) if hasattr(data, "__len__") and common < len(data) else "all"
            raise UsageError(
                f"data: {counted} of the {first} samples are {second} samples too, so the scores would say nothing",
                remedy=f"hold out others, or say in words that it is meant: data.{key}: true",
            )


def in_common(first: Any, second: Any) -> int:
    """How many samples of `first` are in `second` too, as far as it shows."""
    if first is second:
        return len(first) if hasattr(first, "__len__") else 1
    if is_stream(first) or is_stream(second):
        return 0
    views: tuple[Callable[[Any], tuple[Any, Indices] | None], ...] = (_rows_of_arrays, _rows_of_dataset)
    for view in views:
        one, other = view(first), view(second)
        if one is not None and other is not None and one[0] == other[0]:
            return int(np.isin(one[1], other[1]).sum())
    sources, others = _sources(first), _sources(second)
    return len(set(sources) & set(others)) if sources and others else 0


def _rows_of_arrays(dataset: Any) -> tuple[Any, Indices] | None:
    arrays = as_arrays(dataset)
    if arrays is None:
        return None
    rows = torch.arange(len(arrays)) if arrays.rows is None else arrays.rows
    memory = tuple((tensor.data_ptr(), tuple(tensor.shape)) for tensor in arrays.tensors())
    return memory, rows.cpu().numpy()


def _rows_of_dataset(dataset: Any) -> tuple[Any, Indices]:
    base, positions = unwrap(dataset)
    return id(base), np.arange(len(base)) if positions is None else positions


def _sources(dataset: Any) -> list[Any] | None:
    base, positions = unwrap(dataset)
    sources = getattr(base, "sources", None)
    if not isinstance(sources, list | tuple):
        return None
    return list(sources) if positions is None else [sources[position] for position in positions]
