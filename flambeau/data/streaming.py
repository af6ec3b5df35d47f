"""Iterable datasets: batches in the order in which the dataset gives its samples.

`set_epoch(epoch)` is called before each pass if the dataset has it. The position is regained by `state_dict`
and `load_state_dict` if it has them, else by reading up to it. Sample k of pass e is read and transformed
under the seed (seed, e, k), like any other.

Of several processes each reads the whole stream and transforms its own samples alone. So all know when a pass ends,
whatever its length, and the dataset's state is the same in each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from flambeau.data.batch import Collate, collate_with
from flambeau.data.batch_order import Portion, portion
from flambeau.data.index_stream import Indices
from flambeau.data.reading import Transform
from flambeau.errors import UsageError
from flambeau.runtime.seeds import HostState, derive, host_generators_kept, host_state, seed_host, set_host_state

_END = object()


def is_stream(dataset: Any) -> bool:
    """Whether a dataset is read in order, not by index."""
    return isinstance(dataset, IterableDataset) or (
        hasattr(dataset, "__iter__") and not hasattr(dataset, "__getitem__")
    )


@dataclass(frozen=True)
class StreamPosition:
    """A place between two batches."""

    step: int
    """Batches before it, over all epochs."""
    epoch: int
    samples: int
    """Samples of the epoch before it; 0 at the beginning of an epoch."""
    dataset: Any = None
    """The dataset's own state there, if it has one and the epoch has begun."""


class SampleStream:
    """The batches of an iterable dataset.

    Args:
        dataset: an iterable; may have `__len__`, `set_epoch`, `state_dict` and `load_state_dict`.
        transform: called with each sample, or None.
        seed: the seed of the run.
        batch_size: samples a batch.
        drop_last: leave out the last batch of an epoch if it is smaller.
        training: passes without end, each an epoch of its own; else one pass.
        rank, ranks: which process this is, of how many: in training it gets its share of each batch, else every
            `ranks`-th batch whole.
        limit: end a pass after so many samples; whether the dataset has as many as it says is then not found out.
        collate: makes a batch of samples; None stacks them.
    """

    def __init__(
        self,
        dataset: Any,
        transform: Transform | None,
        seed: int,
        *,
        batch_size: int,
        drop_last: bool,
        training: bool,
        rank: int = 0,
        ranks: int = 1,
        limit: int | None = None,
        collate: Collate | None = None,
    ) -> None:
        self.limit = limit
        self.dataset = dataset
        self.collate = collate
        self.transform = transform
        self.seed = seed
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.training = training
        self.rank = rank
        self.ranks = ranks
        self.size: int | None = len(dataset) if hasattr(dataset, "__len__") else None
        self.has_state = hasattr(dataset, "state_dict") and hasattr(dataset, "load_state_dict")
        self._fresh = deepcopy(dataset.state_dict()) if self.has_state else None

    @property
    def steps_per_epoch(self) -> int | None:
        """Batches in a pass; None if the dataset does not say its length."""
        if self.size is None:
            return None
        return self.size // self.batch_size if self.drop_last else -(-self.size // self.batch_size)

    def position_of(self, step: int) -> StreamPosition:
        """Where to begin in order to reach `step` if no state is at hand: at an epoch's beginning."""
        if not self.steps_per_epoch:
            return StreamPosition(0, 0, 0)
        epoch = step // self.steps_per_epoch
        return StreamPosition(epoch * self.steps_per_epoch, epoch, 0)

    def read(
        self, start_step: int, position: StreamPosition, *, with_state: bool
    ) -> Iterator[tuple[Any, Any, Indices, Portion, StreamPosition]]:
        """This process's part of each batch from `start_step` on.

        Inputs, targets, places of the samples in the epoch, which part of the batch it is, and the position
        after it. `with_state` puts the dataset's state into every position, for a reader in another process.
        """
        step, samples_read, state = position.step, position.samples, position.dataset
        for epoch in count(position.epoch):
            iterator = self._open(epoch, state)
            while True:
                ends = [end - samples_read for end in (self.size, self.limit) if end is not None]
                wanted = min([self.batch_size, *ends])
                mine = step >= start_step and (self.training or step % self.ranks == self.rank)
                size, samples = self._take(iterator, epoch, samples_read, wanted, mine=mine)
                at_end = size < self.batch_size or samples_read + size in (self.size, self.limit)
                if at_end and samples_read + size != self.limit:
                    self._require_size(samples_read + size, iterator)
                if not size or (self.drop_last and size < self.batch_size):
                    break
                part = self._part(size)
                ids = np.arange(part.first, part.first + part.size, dtype=np.int64) + samples_read
                samples_read += size
                step += 1
                if mine:
                    after = StreamPosition(step, epoch + 1, 0) if at_end else StreamPosition(step, epoch, samples_read)
                    if with_state and self.has_state and not at_end:
                        after = replace(after, dataset=self.dataset.state_dict())
                    yield *collate_with(self.collate, samples), ids, part, after
                if at_end:
                    break
            if not self.training:
                return
            if not samples_read:
                raise UsageError(f"the training dataset gave not one batch of {self.batch_size} samples")
            samples_read, state = 0, None

    def _part(self, size: int) -> Portion:
        """What this process gets of a batch of `size` samples (in an evaluation: of one that is its own)."""
        return portion(size, self.rank, self.ranks) if self.training else Portion(0, size, size, size)

    def _require_size(self, samples_read: int, iterator: Iterator[Any]) -> None:
        """At the end of a pass: it had as many samples as the dataset says, and is used up."""
        if self.size is None:
            return
        with host_generators_kept():
            samples_read += next(iterator, _END) is not _END
        if samples_read != self.size:
            relation = "more" if samples_read > self.size else f"only {samples_read}"
            raise UsageError(f"the iterable dataset says that it has {self.size} samples, but a pass gave {relation}")

    def _open(self, epoch: int, state: Any) -> Iterator[Any]:
        """Begin a pass: at `state` if there is one, else at its beginning."""
        if self.training and hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        if state is None:
            state = deepcopy(self._fresh)  # a pass that was broken off must not begin the next
        if state is not None:
            self.dataset.load_state_dict(state)
        with host_generators_kept():
            seed_host(derive(self.seed, "stream", epoch))
            return iter(self.dataset)

    def _take(
        self, iterator: Iterator[Any], epoch: int, start: int, number: int, *, mine: bool
    ) -> tuple[int, list[Any]]:
        """Read a batch of up to `number` samples, of which the first is number `start` of the epoch.

        Returns:
            How many there were, and this process's part of them, transformed; without `mine`, none.
        """
        part = self._part(number)
        stop = part.first + part.rows if mine else 0
        samples: list[Any] = []
        passed: list[tuple[Any, HostState | None]] = []  # in front of the part; of a smaller batch it begins earlier
        with host_generators_kept():
            for row in range(number):
                purpose = ("augment", epoch) if self.training else ("eval",)
                seed_host(derive(self.seed, *purpose, start + row))
                with _naming(start + row, epoch):
                    sample = next(iterator, _END)
                    if sample is _END:
                        break
                    if part.first <= row < stop:
                        samples.append(self._transformed(sample))
                    elif row < stop and self.size is None:
                        passed.append((sample, host_state() if self.transform else None))
            else:
                return number, samples
            if not (row and mine and self.size is None):
                return row, []
            part, first = self._part(row), part.first
            early = []
            for place in range(part.first, min(part.first + part.rows, first)):
                sample, state = passed[place]
                if state is not None:
                    set_host_state(state)
                with _naming(start + place, epoch):
                    early.append(self._transformed(sample))
            return row, early + samples[: max(0, part.first + part.rows - first)]

    def _transformed(self, sample: Any) -> Any:
        return self.transform(sample) if self.transform else sample


@contextmanager
def _naming(index: int, epoch: int) -> Iterator[None]:
    """Say in an error which sample it was."""
    try:
        yield
    except Exception as error:
        error.add_note(f"while reading sample {index} of pass {epoch} of the iterable dataset")
        raise
