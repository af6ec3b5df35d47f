"""Batches, and how samples become one.

A sample is `(input, target)` or `{"inputs": ..., "targets": ...}`, where inputs and targets are tensors,
numpy arrays, numbers, strings, or nested dicts of these. A batch keeps the shape of its samples: tensors get
a first dimension, and what is not numeric (strings, bytes, None, lists of such) stays on the host as a list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flambeau.data.sample_random import beta, normal, uniform
from flambeau.errors import UsageError
from flambeau.runtime.seeds import derive

Collate = Callable[[Sequence[Any]], Any]
"""Makes one batch of samples, in the form of a sample: `(inputs, targets)` or `{"inputs": ..., "targets": ...}`."""

_HOST_TYPES = (str, bytes, type(None), list, tuple)


class Batch:
    """The samples of one step: `inputs, targets = batch`.

    Attributes:
        inputs: tensor of shape (size, ...), or a nested dict of tensors and host lists.
        targets: likewise; None if the samples have none.
        ids: the dataset's index of each sample, int64, on the host.
        size: number of samples; 0 for a borrowed row, which is there so that the model can be called, and weighs
            nothing: what a process gets of a batch with fewer samples than processes.
        global_size: samples of the optimizer step that this batch is a part of, over all processes.
        number: in an evaluation, its place in the order of all batches, whichever process has them.
        start: place of its first sample in the global batch.
        key: what random numbers of its samples are a function of, besides their ids: of the seed and the epoch.
    """

    __slots__ = ("global_size", "ids", "inputs", "key", "number", "size", "start", "targets")

    def __init__(
        self,
        inputs: Any,
        targets: Any,
        ids: npt.NDArray[np.int64],
        size: int,
        global_size: int | None = None,
        start: int = 0,
        key: int = 0,
    ) -> None:
        self.inputs = inputs
        self.targets = targets
        self.ids = ids
        self.size = size
        self.global_size = size if global_size is None else global_size
        self.number = 0
        self.start = start
        self.key = key

    def __iter__(self) -> Iterator[Any]:
        return iter((self.inputs, self.targets))

    def __getitem__(self, key: str) -> Any:
        if key not in self.__slots__:
            raise KeyError(key)
        return getattr(self, key)

    def __repr__(self) -> str:
        return f"Batch(size={self.size}, inputs={_describe(self.inputs)}, targets={_describe(self.targets)})"

    def replace(self, *, inputs: Any, targets: Any) -> Batch:
        """The same samples with other inputs and targets: what a `batch_transform` returns."""
        batch = Batch(inputs, targets, self.ids, self.size, self.global_size, self.start, self.key)
        batch.number = self.number
        return batch

    def keyed(self, *path: int | str) -> Batch:
        """The same batch with random numbers of its own, for a purpose that `path` says."""
        batch = self.replace(inputs=self.inputs, targets=self.targets)
        batch.key = derive(self.key, *path)
        return batch

    def random(self, *shape: int, purpose: str = "") -> torch.Tensor:
        """Numbers from [0, 1) for each row, float32 of shape (rows, *shape), where the batch's tensors are.

        A function of (seed, epoch, sample, `purpose`): not of the other samples of the batch, of the number of
        processes or of the device. In an evaluation the epoch has no part in it.

        Example:
            >>> mirrored = batch.random(purpose="flip") < 0.5
        """
        return uniform(self.key, self._row_ids(), shape, purpose=purpose, device=self.device)

    def random_normal(self, *shape: int, purpose: str = "") -> torch.Tensor:
        """Standard normal numbers for each row; else as `random`."""
        return normal(self.key, self._row_ids(), shape, purpose=purpose, device=self.device)

    def random_beta(self, alpha: float, *, purpose: str = "") -> torch.Tensor:
        """A number from Beta(alpha, alpha) for each row, float64 on the host; else as `random`."""
        return beta(self.key, self._row_ids(), alpha, purpose=purpose)

    @property
    def device(self) -> torch.device:
        """Where its tensors are; the host, if it has none."""
        found: list[torch.device] = []
        for half in (self.inputs, self.targets):
            map_tensors(lambda tensor: found.append(tensor.device), half)
        return found[0] if found else torch.device("cpu")

    def _row_ids(self) -> npt.NDArray[np.int64]:
        """The ids of the rows; a borrowed one has none that counts."""
        return self.ids if self.size else np.full(1, -1, dtype=np.int64)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch with its tensors on `device`; host data stays where it is."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return self.replace(inputs=map_tensors(move, self.inputs), targets=map_tensors(move, self.targets))

    def split(self, n: int) -> list[Batch]:
        """`n` contiguous parts whose sizes differ by at most one; tensors are views of the batch's.

        With fewer samples than parts, the last parts are borrowed: the batch's first row, of size 0.
        """
        if n < 1:
            raise ValueError(f"a batch cannot be split into {n} parts")
        if n == 1:
            return [self]
        return [self._part(*share(self.size, part, n)) for part in range(n)]

    def _part(self, start: int, stop: int) -> Batch:
        first, last = (start, stop) if stop > start else (0, 1)
        inputs, targets = _rows(self.inputs, first, last), _rows(self.targets, first, last)
        ids, place = self.ids[start:stop], self.start + start
        return Batch(inputs, targets, ids, stop - start, self.global_size, place, self.key)


def share(size: int, part: int, parts: int) -> tuple[int, int]:
    """Where part number `part` of `size` samples begins and ends: sizes differ by at most one, larger ones first.

    >>> [share(7, part, 3) for part in range(3)]
    [(0, 3), (3, 5), (5, 7)]
    """
    quotient, rest = divmod(size, parts)
    start = quotient * part + min(part, rest)
    return start, start + quotient + (part < rest)


def collate(samples: Sequence[Any]) -> tuple[Any, Any]:
    """Make `(inputs, targets)` of a batch from its samples.

    Tensors and arrays are stacked and keep their dtype; ints become int64, floats torch's default dtype
    (float32 unless changed), booleans bool. Samples without targets, `(input,)` or `{"inputs": ...}`, give
    targets None.

    Raises:
        UsageError: the samples are of no known form, or do not fit together.
    """
    if not samples:
        raise UsageError("a batch needs at least one sample")
    pairs = [input_and_target(sample) for sample in samples]
    inputs = _stack([pair[0] for pair in pairs], "inputs")
    targets = _stack([pair[1] for pair in pairs], "targets")
    if isinstance(targets, list) and all(target is None for target in targets):
        targets = None
    return inputs, targets


def collate_with(function: Collate | None, samples: Sequence[Any]) -> tuple[Any, Any]:
    """`(inputs, targets)` of a batch, made by a data module's own function, or by `collate`.

    Raises:
        UsageError: what the function gave is no batch of these samples: every tensor and list in it must have the
            samples as its first dimension, since micro-batches are cut from it.
    """
    if function is None:
        return collate(samples)
    inputs, targets = input_and_target(function(samples))
    for size in _sizes({"inputs": inputs, "targets": targets}):
        if size != len(samples):
            raise UsageError(
                f"the data's collate made {size} rows of {len(samples)} samples",
                remedy="give every tensor the samples as its first dimension",
            )
    return inputs, targets


def _sizes(data: Any) -> Iterator[int]:
    if isinstance(data, torch.Tensor):
        yield len(data) if data.ndim else 0
    elif isinstance(data, list):
        yield len(data)
    elif isinstance(data, dict):
        for value in data.values():
            yield from _sizes(value)


def input_and_target(sample: Any) -> tuple[Any, Any]:
    """The two halves of a sample (or of a whole batch in the form of a sample)."""
    if isinstance(sample, tuple | list) and 1 <= len(sample) <= 2:
        return sample[0], sample[1] if len(sample) == 2 else None
    if isinstance(sample, Mapping) and "inputs" in sample and sample.keys() <= {"inputs", "targets"}:
        return sample["inputs"], sample.get("targets")
    if isinstance(sample, Mapping):
        found = f"a dict with the keys {', '.join(map(repr, sample))}"
    elif isinstance(sample, tuple | list):
        found = f"a {type(sample).__name__} of {len(sample)}"
    else:
        found = _describe(sample)
    raise UsageError(
        f"a sample is (input, target) or {{'inputs': ..., 'targets': ...}}, but the dataset gave {found}",
        remedy="bring it to one of the two forms in the dataset's __getitem__ or in a transform",
    )


def map_tensors(function: Any, data: Any) -> Any:
    """Apply `function` to every tensor of nested dicts; anything else stays as it is."""
    if isinstance(data, torch.Tensor):
        return function(data)
    if isinstance(data, dict):
        return {key: map_tensors(function, value) for key, value in data.items()}
    return data


def row_of(data: Any, row: int) -> Any:
    """One sample's part of a batch's inputs or targets."""
    if isinstance(data, torch.Tensor | list):
        return data[row]
    if isinstance(data, dict):
        return {key: row_of(value, row) for key, value in data.items()}
    return data


def _stack(values: list[Any], key: str) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        _require_like(values, torch.Tensor, key)
        _require_same_shape(values, key)
        return torch.stack(values)
    if isinstance(first, np.ndarray | np.generic):
        _require_like(values, np.ndarray | np.generic, key)
        if first.dtype.kind not in "biufc":
            raise UsageError(f"'{key}' holds numpy data of dtype {first.dtype}, which is not numeric")
        _require_same_shape(values, key)
        return torch.from_numpy(np.stack(values))
    if isinstance(first, bool):
        _require_like(values, bool, key)
        return torch.tensor(values)
    if isinstance(first, int | float):
        _require_like(values, int | float, key)
        return torch.tensor(values)
    if isinstance(first, Mapping):
        _require_like(values, Mapping, key)
        for number, value in enumerate(values):
            if value.keys() != first.keys():
                raise UsageError(
                    f"'{key}' of sample {number} of the batch has the keys {sorted(map(str, value))}, "
                    f"that of the first {sorted(map(str, first))}"
                )
        return {name: _stack([value[name] for value in values], f"{key}.{name}") for name in first}
    for value in values:
        _require_host_data(value, key)
    return values


def _require_like(values: list[Any], kind: Any, key: str) -> None:
    for number, value in enumerate(values):
        if not isinstance(value, kind) or (isinstance(value, bool) and not isinstance(values[0], bool)):
            raise UsageError(
                f"'{key}' is {_describe(values[0])} in the first sample of the batch "
                f"and {_describe(value)} in number {number}"
            )


def _require_same_shape(values: list[Any], key: str) -> None:
    shape = values[0].shape
    for number, value in enumerate(values):
        if value.shape != shape:
            raise UsageError(
                f"'{key}' has shape {tuple(shape)} in the first sample of the batch "
                f"and {tuple(value.shape)} in number {number}",
                remedy="resize, crop or pad the samples to one shape in a transform; or give the data module a "
                "`collate` that pads them to the longest of each batch: flambeau.data.Padding",
            )


def _require_host_data(value: Any, key: str) -> None:
    if isinstance(value, _HOST_TYPES):
        nested = value if isinstance(value, list | tuple) else ()
        if not any(isinstance(item, torch.Tensor | np.ndarray) for item in nested):
            return
        remedy = "give several tensors of one sample names, as a dict: {'image': ..., 'depth': ...}"
    else:
        remedy = "turn it into a tensor in the dataset or in a transform"
    raise UsageError(f"'{key}' is {_describe(value)}, which cannot be made into a batch", remedy=remedy)


def _rows(data: Any, start: int, stop: int) -> Any:
    if isinstance(data, torch.Tensor | list):
        return data[start:stop]
    if isinstance(data, dict):
        return {key: _rows(value, start, stop) for key, value in data.items()}
    return data


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"Tensor{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
