"""Datasets held in tensors, from which many samples are fetched at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from flambeau.data.batch import map_tensors
from flambeau.errors import UsageError


@runtime_checkable
class Fetches(Protocol):
    """A dataset that gives many samples at once, as a batch in the form of a sample."""

    def fetch(self, indices: torch.Tensor, /) -> Any:
        """The samples at `indices` (int64, shape (n,)), stacked: `(inputs, targets)` or the dict form."""


class ArrayDataset(Dataset[tuple[Any, Any]]):
    """A dataset held in tensors: the fastest to feed, and kept on the accelerator if it fits.

    Args:
        inputs: tensor or numpy array of shape (rows, ...), or a nested dict of them; shared, not copied.
        targets: likewise; None if there are none.
        rows: the rows that are this dataset's samples, in this order; default all. Several datasets can so
            share the same arrays.

    A sample is `(input, target)`.
    """

    def __init__(self, inputs: Any, targets: Any = None, *, rows: Any = None) -> None:
        self.inputs = _as_tensors(inputs)
        self.targets = _as_tensors(targets)
        lengths = {len(tensor) for tensor in self.tensors()}
        if len(lengths) != 1:
            raise UsageError(f"the arrays of a dataset must have one length, not {sorted(lengths)}")
        self._all_rows = lengths.pop()
        self.rows = None if rows is None else torch.as_tensor(rows, dtype=torch.int64, device=self.device)

    def __len__(self) -> int:
        return self._all_rows if self.rows is None else len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} lies outside a dataset of {len(self)} samples")
        row = index if self.rows is None else int(self.rows[index])
        return self._each(lambda tensor: tensor[row])

    def fetch(self, indices: torch.Tensor) -> tuple[Any, Any]:
        """Copies of the samples at `indices`, on the device of the data."""
        rows = indices.to(self.device)
        if self.rows is not None:
            rows = self.rows.index_select(0, rows)
        return self._each(lambda tensor: tensor.index_select(0, rows))

    def subset(self, indices: Any) -> ArrayDataset:
        """The samples at `indices` as a dataset of their own that shares this one's arrays."""
        indices = torch.as_tensor(indices, dtype=torch.int64, device=self.device)
        rows = indices if self.rows is None else self.rows[indices]
        return ArrayDataset(self.inputs, self.targets, rows=rows)

    def to(self, device: torch.device) -> ArrayDataset:
        """The dataset on `device`, with its own rows alone."""
        if self.rows is not None:
            return ArrayDataset(*self.fetch(torch.arange(len(self)))).to(device)
        return ArrayDataset(*self._each(lambda tensor: tensor.to(device)))

    @property
    def device(self) -> torch.device:
        """Where the arrays are."""
        return self.tensors()[0].device

    @property
    def sample_bytes(self) -> int:
        """Memory that one sample takes."""
        return sum(tensor.nbytes for tensor in self.tensors()) // max(1, self._all_rows)

    def tensors(self) -> list[torch.Tensor]:
        """All tensors of the dataset."""
        found: list[torch.Tensor] = []
        self._each(found.append)
        return found

    def _each(self, function: Callable[[torch.Tensor], Any]) -> tuple[Any, Any]:
        return map_tensors(function, self.inputs), map_tensors(function, self.targets)


def as_arrays(dataset: Any) -> ArrayDataset | None:
    """`dataset` as an ArrayDataset that shares its memory, if it is nothing but tensors; else None.

    Understands `TensorDataset` of one or two tensors and `Subset` (so `random_split` too). A subclass that
    gives its samples in a way of its own is left alone.
    """
    kind = type(dataset)
    if isinstance(dataset, ArrayDataset):
        own_way = kind.__getitem__ is not ArrayDataset.__getitem__ or kind.fetch is not ArrayDataset.fetch
        return None if own_way else dataset
    if isinstance(dataset, TensorDataset) and kind.__getitem__ is TensorDataset.__getitem__:
        return ArrayDataset(*dataset.tensors) if 1 <= len(dataset.tensors) <= 2 else None
    if isinstance(dataset, Subset) and kind.__getitem__ is Subset.__getitem__:
        base = as_arrays(dataset.dataset)
        return None if base is None else base.subset(np.asarray(dataset.indices, dtype=np.int64))
    return None


def as_fetching(dataset: Any) -> Fetches | None:
    """`dataset` as something that fetches many samples at once, if it is; else None."""
    arrays = as_arrays(dataset)
    if arrays is not None:
        return arrays
    if isinstance(dataset, ArrayDataset) and type(dataset).fetch is ArrayDataset.fetch:
        return None  # the subclass has its own __getitem__, which the inherited fetch would pass over
    return dataset if isinstance(dataset, Fetches) else None


def resident(dataset: ArrayDataset, device: torch.device, wanted: bool | str) -> ArrayDataset:
    """`dataset` on `device` if `wanted`; "auto": on CUDA, if it takes under a quarter of the memory."""
    if wanted == "auto":
        size = dataset.sample_bytes * len(dataset)
        wanted = device.type == "cuda" and size < torch.cuda.mem_get_info(device)[1] / 4
    return dataset.to(device) if wanted else dataset


def split_rows(data: Any, rows: int) -> Iterable[Any]:
    """Cut a batch's inputs or targets into pieces of `rows` samples; the last may be smaller.

    Takes a tensor, a nested dict of tensors or None (None without end). The pieces share memory with `data`
    but are no views in autograd's sense, so that writing to one in place is no write to the others.
    """
    if isinstance(data, torch.Tensor):
        return torch.unsafe_split(data, rows)
    if data is None:
        return repeat(None)
    pieces = [split_rows(value, rows) for value in data.values()]
    return [dict(zip(data, values, strict=True)) for values in zip(*pieces, strict=False)]


def _as_tensors(data: Any) -> Any:
    if isinstance(data, dict) and data:
        return {key: _as_tensors(value) for key, value in data.items()}
    if isinstance(data, np.ndarray):
        return torch.from_numpy(data)
    if data is None or (isinstance(data, torch.Tensor) and data.dim()):
        return data
    raise UsageError(f"a dataset is made of tensors or arrays with one row a sample, not of {type(data).__name__}")
