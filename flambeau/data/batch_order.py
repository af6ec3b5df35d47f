"""Which samples a process reads for the batch of a step: a function of (seed, step, rank, number of ranks).

The batch of a step is the same for any number of processes. Each takes a contiguous share of it, and computes the
indices of this share only: what that costs depends neither on the number of samples nor on the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from flambeau.data.batch import share
from flambeau.data.index_stream import IndexStream, Indices

_INDEX_BLOCK = 1 << 14  # indices computed at a time


class Portion(NamedTuple):
    """A process's part of a batch. One without samples reads the batch's first, for the model to have an input."""

    first: int
    """Place in the batch of the first row to read."""
    rows: int
    """Rows to read: the samples, or one that is borrowed."""
    size: int
    """Samples of this process."""
    global_size: int
    """Samples of the batch, over all processes."""


def portion(global_size: int, rank: int, ranks: int) -> Portion:
    """The part of process `rank` of `ranks` in a batch of `global_size` samples."""
    start, stop = share(global_size, rank, ranks)
    return Portion(start, stop - start, stop - start, global_size) if stop > start else Portion(0, 1, 0, global_size)


class Block(NamedTuple):
    """A process's parts of several batches in a row."""

    epoch: int
    step: int
    """Number of the first batch in its epoch."""
    rows: Indices
    """Samples to read: `BatchOrder.whole.rows` a batch, in the last batch of an epoch as many or fewer."""


class Request(NamedTuple):
    """A process's part of one batch."""

    epoch: int
    rows: Indices
    """Samples to read."""
    portion: Portion

    @property
    def ids(self) -> Indices:
        """The samples that count: without the borrowed one."""
        return self.rows[: self.portion.size]


class BatchOrder:
    """One process's parts of the batches of every epoch, as indices.

    Args:
        stream: the order of the samples.
        batch_size: samples of a batch, over all processes.
        drop_last: leave out the last batch of an epoch if it is smaller.
        endless: epoch after epoch, or one.
        rank, ranks: which process this is, of how many.

    Attributes:
        steps_per_epoch: batches in an epoch.
        whole: the part in a batch of `batch_size`.
        last: the part in the last batch of an epoch.
    """

    def __init__(
        self,
        stream: IndexStream,
        batch_size: int,
        *,
        drop_last: bool,
        endless: bool,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.stream = stream
        self.batch_size = batch_size
        self.endless = endless
        self._whole_steps, ragged = divmod(stream.size, batch_size)
        self.steps_per_epoch = self._whole_steps + (ragged > 0 and not drop_last)
        self._samples = min(self.steps_per_epoch * batch_size, stream.size)
        self.whole = portion(batch_size, rank, ranks)
        self.last = portion(ragged, rank, ranks) if self.steps_per_epoch > self._whole_steps else self.whole

    def blocks(self, start_step: int, rows: int = 0) -> Iterator[Block]:
        """The parts from step `start_step` on, those of many batches at a time: `rows` rows or more."""
        steps = max(1, max(rows, _INDEX_BLOCK) // self.whole.rows)
        epoch, first = divmod(start_step, self.steps_per_epoch) if self.steps_per_epoch else (0, 0)
        while self.endless or epoch == 0:
            for step in range(first, self.steps_per_epoch, steps):
                yield Block(epoch, step, self.rows(epoch, step, min(step + steps, self.steps_per_epoch)))
            epoch, first = epoch + 1, 0

    def requests(self, start_step: int) -> Iterator[Request]:
        """The parts from step `start_step` on, one batch after the other."""
        for epoch, step, rows in self.blocks(start_step):
            for start in range(0, len(rows), self.whole.rows):
                yield Request(epoch, rows[start : start + self.whole.rows], self.part(step))
                step += 1

    def part(self, step: int) -> Portion:
        """What this process gets of batch number `step` of an epoch."""
        return self.whole if step < self._whole_steps else self.last

    def rows(self, epoch: int, step: int, stop: int) -> Indices:
        """The samples to read for the batches from number `step` of an epoch to `stop` (exclusive), in a row."""
        if self.whole.rows == self.batch_size:  # one process: positions without a gap, which small data give faster
            return self.stream.indices(epoch, step * self.batch_size, min(stop * self.batch_size, self._samples))
        batches = np.arange(step, min(stop, self._whole_steps), dtype=np.int64)[:, None] * self.batch_size
        positions = (batches + np.arange(self.whole.first, self.whole.first + self.whole.rows)).ravel()
        if stop > self._whole_steps:
            start = self._whole_steps * self.batch_size + self.last.first
            positions = np.concatenate([positions, np.arange(start, start + self.last.rows)])
        return self.stream.at(epoch, positions)
