"""The way of the data from a dataset to the device, for training and for evaluation.

Which samples form the batch of an optimizer step is a function of (seed, step), and which of them a process reads a
function of its rank besides (batch_order.py); so `batches(start_step)` begins anywhere at once, and the number of
workers changes nothing but the speed. Four ways lead to a batch:

1. data held in tensors: fetched in the main process, many batches at a time, and sliced;
2. map-style datasets without workers: read in the main process (reading.py);
3. map-style datasets with workers: read in other processes (workers.py);
4. iterable datasets: read in order, in the main process or in one other (streaming.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import count
from typing import Any, Literal

import torch

from flambeau.config.sections import LoaderSettings
from flambeau.data.batch import Batch, Collate, map_tensors, share
from flambeau.data.batch_order import BatchOrder, Portion, Request
from flambeau.data.in_memory import ArrayDataset, as_arrays, resident, split_rows
from flambeau.data.index_stream import IndexStream, Indices
from flambeau.data.reading import SampleReader, Transform
from flambeau.data.streaming import SampleStream, StreamPosition, is_stream
from flambeau.data.workers import StreamProcess, WorkerPool
from flambeau.errors import UsageError
from flambeau.runtime.seeds import derive

BatchTransform = Callable[[Batch], Batch]

_BLOCK_BYTES = {"cpu": 1 << 19, "cuda": 1 << 25}  # data fetched at a time; on the host, what stays in a core's cache
_ALIGNMENT = {"cpu": 64, "cuda": 512}  # bytes, of what torch's allocators return


class _MapSource:
    """A map-style dataset's way to the device."""

    def __init__(
        self,
        dataset: Any,
        order: BatchOrder,
        reader: SampleReader,
        *,
        settings: LoaderSettings,
        device: torch.device,
    ) -> None:
        self._order = order
        self._reader = reader
        self._settings = settings
        self._device = device
        self._key = partial(batch_key, reader.seed, training=reader.training)
        arrays = as_arrays(dataset) if reader.transform is None and reader.collate is None else None
        self._arrays = None if arrays is None else resident(arrays, device, settings.device_resident)
        self._pool: WorkerPool | None = None

    def batches(self, start_step: int) -> Iterator[Batch]:
        if self._arrays is not None:
            return self._fetched(self._arrays, start_step)
        return self._read_by_workers(start_step) if self._settings.workers else self._read(start_step)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _fetched(self, arrays: ArrayDataset, start_step: int) -> Iterator[Batch]:
        """Fetch many batches at once and slice them: one look-up in place of one a batch."""
        order, size = self._order, self._order.whole.rows
        rows = _rows_at_once(arrays, size)
        for epoch, step, ids in order.blocks(start_step, rows):
            key = self._key(epoch)
            indices = torch.from_numpy(ids).to(arrays.device)
            part = order.whole
            for start in range(0, len(ids), rows):
                inputs, targets = arrays.fetch(indices[start : start + rows])
                if arrays.device != self._device:
                    inputs, targets = (_send(half, self._device) for half in (inputs, targets))
                for some_inputs, some_targets in zip(split_rows(inputs, size), split_rows(targets, size), strict=False):
                    step += 1
                    if step == order.steps_per_epoch:
                        part = order.last
                    some_ids = ids[start : start + part.size]
                    start += size
                    yield Batch(some_inputs, some_targets, some_ids, part.size, part.global_size, part.first, key)

    def _read(self, start_step: int) -> Iterator[Batch]:
        answer = _Answer(self._reader)
        for request in self._order.requests(start_step):
            yield self._batch(*answer(request))

    def _read_by_workers(self, start_step: int) -> Iterator[Batch]:
        if self._pool is None:
            self._pool = WorkerPool(
                _Answer(self._reader),
                workers=self._settings.workers,
                prefetch=self._settings.prefetch,
                pin_memory=self._device.type == "cuda",
            )
        for result in self._pool.results(self._order.requests(start_step)):
            yield self._batch(*result)

    def _batch(self, inputs: Any, targets: Any, ids: Indices, part: Portion, epoch: int) -> Batch:
        return _batch(inputs, targets, ids, part, self._key(epoch), device=self._device)


class _StreamSource:
    """An iterable dataset's way to the device."""

    def __init__(self, stream: SampleStream, *, settings: LoaderSettings, device: torch.device) -> None:
        self._stream = stream
        self._settings = settings
        self._device = device
        self._process: StreamProcess | None = None
        self._loaded: StreamPosition | None = None
        self._position: StreamPosition | None = None

    def batches(self, start_step: int) -> Iterator[Batch]:
        position = self._stream.position_of(start_step)
        if self._loaded is not None and self._loaded.step == start_step:
            position = self._loaded
        self.close()
        if self._settings.workers:
            self._process = StreamProcess(
                partial(self._stream.read, start_step, position, with_state=True),
                prefetch=self._settings.prefetch,
                pin_memory=self._device.type == "cuda",
            )
            results = self._process.results()
        else:
            results = self._stream.read(start_step, position, with_state=False)
        key = partial(batch_key, self._stream.seed, training=self._stream.training)
        for inputs, targets, ids, part, self._position in results:
            epoch = self._position.epoch - (self._position.samples == 0)  # after the last batch: the next one's
            yield _batch(inputs, targets, ids, part, key(epoch), device=self._device)

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def state_dict(self) -> dict[str, Any]:
        position = self._position
        if position is None or not self._stream.has_state:
            return {}
        state = asdict(position)
        if self._process is None and position.samples:  # the dataset stands where the last batch ended
            state["dataset"] = self._stream.dataset.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loaded = StreamPosition(**state) if state else None


class Feeder:
    """Training batches.

    Args:
        dataset: map-style or iterable; the module's docstring says how each is read.
        settings: workers, prefetch, shuffle, drop_last, device_resident.
        batch_size: samples per optimizer step, over all processes.
        seed: the seed of the run; order and augmentation are functions of it.
        device: where the batches go.
        transform: called with each sample; seeded for each by (seed, epoch, index).
        batch_transform: called with each batch on the device; random numbers come from `Batch.random`.
        rank, ranks: which process this is, of how many that train together. Each gets a contiguous share of every
            batch; sizes differ by at most one, the first shares are the larger ones. A share without samples is one
            row of somebody else's, of size 0.
        collate: makes a batch of samples, in the form of a sample; None stacks them.

    Attributes:
        steps_per_epoch: batches in an epoch; None for an iterable dataset without a length.

    Workers are not used for data that is held in tensors and has no transform: fetching it here is faster. An
    iterable dataset is read by at most one, so that their number does not change its order; and by every process
    whole, which transforms its share alone: it must give every process the same samples.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        settings: LoaderSettings,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        transform: Transform | None = None,
        batch_transform: BatchTransform | None = None,
        rank: int = 0,
        ranks: int = 1,
        collate: Collate | None = None,
    ) -> None:
        device = torch.device(device)
        self._batch_transform = batch_transform
        self._source: _MapSource | _StreamSource
        self.steps_per_epoch: int | None
        if is_stream(dataset):
            stream = SampleStream(
                dataset,
                transform,
                seed,
                batch_size=batch_size,
                drop_last=settings.drop_last,
                training=True,
                rank=rank,
                ranks=ranks,
                collate=collate,
            )
            self._source = _StreamSource(stream, settings=settings, device=device)
            self.steps_per_epoch = stream.steps_per_epoch
        else:
            order = BatchOrder(
                IndexStream(_length(dataset), seed, settings.shuffle),
                batch_size,
                drop_last=settings.drop_last,
                endless=True,
                rank=rank,
                ranks=ranks,
            )
            reader = SampleReader(dataset, transform, seed, training=True, collate=collate)
            self._source = _MapSource(dataset, order, reader, settings=settings, device=device)
            self.steps_per_epoch = order.steps_per_epoch
        if self.steps_per_epoch == 0:
            size = _length(dataset)
            raise UsageError(
                f"the training dataset has {size} samples, which is not one batch of {batch_size}",
                remedy="lower data.batch_size or set data.drop_last to false" if size else None,
            )

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Batches without end from optimizer step `start_step` on.

        Step s is batch `s % steps_per_epoch` of epoch `s // steps_per_epoch`. Not to be used twice at once.
        """
        batches = self._source.batches(start_step)
        return batches if self._batch_transform is None else map(self._batch_transform, batches)

    def state_dict(self) -> dict[str, Any]:
        """What is needed, besides the step, to go on after the last batch given: empty unless the dataset is
        iterable, whose own state it then holds."""
        return self._source.state_dict() if isinstance(self._source, _StreamSource) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next `batches(step)` begin from `state`, if it is of that step."""
        if isinstance(self._source, _StreamSource):
            self._source.load_state_dict(state)

    def close(self) -> None:
        """End the worker processes, if any; also done when the feeder is collected."""
        self._source.close()


class EvalFeeder:
    """Evaluation batches: each sample exactly once, in the dataset's order.

    Args: as for Feeder; a random transform is seeded by (seed, index), so that every evaluation is the same. Which
        samples form a batch does not depend on the number of processes: each process gets some of the batches whole.
        Of a map-style dataset these are consecutive ones, of an iterable dataset every `ranks`-th; there may be none.
        samples: give the first ones alone, of a dataset that may be longer or without end.

    Attributes:
        num_samples: how many there are; None for an iterable dataset without a length.
        num_batches: batches that this process has of them; None likewise.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int,
        workers: int = 0,
        prefetch: int = 2,
        device: torch.device | str = "cpu",
        transform: Transform | None = None,
        batch_transform: BatchTransform | None = None,
        seed: int = 0,
        device_resident: bool | Literal["auto"] = "auto",
        rank: int = 0,
        ranks: int = 1,
        samples: int | None = None,
        collate: Collate | None = None,
    ) -> None:
        device = torch.device(device)
        settings = LoaderSettings(workers=workers, prefetch=prefetch, device_resident=device_resident)
        self._batch_transform = batch_transform
        self._source: _MapSource | _StreamSource
        self.num_samples: int | None
        self.num_batches: int | None
        if is_stream(dataset):
            stream = SampleStream(
                dataset,
                transform,
                seed,
                batch_size=batch_size,
                drop_last=False,
                training=False,
                rank=rank,
                ranks=ranks,
                limit=samples,
                collate=collate,
            )
            self._source = _StreamSource(stream, settings=settings, device=device)
            self.num_samples = stream.size if samples is None else min(stream.size or samples, samples)
            self._first_batch, self._stride = rank, ranks
            count = self.num_samples
            self.num_batches = None if count is None else len(range(rank, -(-count // batch_size), ranks))
        else:
            self.num_samples = _length(dataset) if samples is None else min(_length(dataset), samples)
            self._first_batch, stop = share(-(-self.num_samples // batch_size), rank, ranks)
            self.num_batches = stop - self._first_batch
            self._stride = 1
            in_order = IndexStream(min(stop * batch_size, self.num_samples), seed, shuffle=False)
            order = BatchOrder(in_order, batch_size, drop_last=False, endless=False)
            reader = SampleReader(dataset, transform, seed, training=False, collate=collate)
            self._source = _MapSource(dataset, order, reader, settings=settings, device=device)

    def batches(self) -> Iterator[Batch]:
        """One pass over the dataset. Worker processes stay for the next."""
        batches = self._source.batches(0 if isinstance(self._source, _StreamSource) else self._first_batch)
        return batches if self._batch_transform is None else map(self._batch_transform, batches)

    def numbers(self) -> Iterator[int]:
        """The number of each of this process's batches among those of all processes; without end."""
        return count(self._first_batch, self._stride)

    def close(self) -> None:
        """End the worker processes, if any; also done when the feeder is collected."""
        self._source.close()


class _Answer:
    """What a worker does with a request."""

    def __init__(self, reader: SampleReader) -> None:
        self._reader = reader

    def __call__(self, request: Request) -> tuple[Any, Any, Indices, Portion, int]:
        """Inputs, targets, ids, the process's part of the batch, and the epoch."""
        return *self._reader.read(request.epoch, request.rows), request.ids, request.portion, request.epoch


def batch_key(seed: int, epoch: int, *, training: bool) -> int:
    """`Batch.key` of the batches of an epoch; of an evaluation, which is the same each time."""
    return derive(seed, "batch", epoch) if training else derive(seed, "eval", "batch")


def _batch(inputs: Any, targets: Any, ids: Indices, part: Portion, key: int, *, device: torch.device) -> Batch:
    if device.type != "cpu":
        inputs, targets = _send(inputs, device), _send(targets, device)
    return Batch(inputs, targets, ids, len(ids), part.global_size, part.first, key)


def _send(data: Any, device: torch.device) -> Any:
    """Copy to the device, without waiting where the memory is pinned."""
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), data)


def _rows_at_once(arrays: ArrayDataset, batch_size: int) -> int:
    """Rows to fetch at a time: a multiple of the batch size.

    More than one batch only if each slice of a block begins where an allocator could have put it: libraries
    choose their kernels by alignment, and a batch must give the same bits however it was read.
    """
    kind = arrays.device.type
    alignment = _ALIGNMENT.get(kind, 512)
    if any(batch_size * tensor[:1].nbytes % alignment for tensor in arrays.tensors()):
        return batch_size
    budget = _BLOCK_BYTES.get(kind, 1 << 19)
    return batch_size * max(1, budget // max(1, batch_size * arrays.sample_bytes))


def _length(dataset: Any) -> int:
    try:
        return len(dataset)
    except TypeError:
        raise UsageError(
            f"the dataset {type(dataset).__name__} has neither a length nor __iter__",
            remedy="give it __len__ and __getitem__, or __iter__",
        ) from None
