"""Where the time of training goes: waiting for data, and everything else. Read from the host's clock alone."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

SLOW_DATA = 0.5
"""Share of the time spent waiting for data above which a run says so."""

LEAST_SECONDS = 10.0
"""Seconds of training that such a judgement takes: the first batches are no measure."""

SMOOTHING_SECONDS = 5.0
"""Time constant of the figures beside the progress bar."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of training, without what was left out of it."""

    seconds: float
    data_seconds: float
    steps: int
    samples: int

    @property
    def samples_per_second(self) -> float:
        return self.samples / max(self.seconds, 1e-9)

    @property
    def data_share(self) -> float:
        return min(self.data_seconds / max(self.seconds, 1e-9), 1.0)

    def __add__(self, other: Span) -> Span:
        return Span(
            self.seconds + other.seconds,
            self.data_seconds + other.data_seconds,
            self.steps + other.steps,
            self.samples + other.samples,
        )


class Pace:
    """The clock of a run, read by whoever keeps a reading of before."""

    def __init__(self) -> None:
        self._waited = 0.0
        self._left_out = 0.0

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """`batches`, with the time noted that each is waited for. On an accelerator the host alone waits here."""
        clock = time.perf_counter
        while True:
            begun = clock()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += clock() - begun
            yield batch

    def leave_out(self, seconds: float) -> None:
        """Count so many seconds that have just gone by to no training: they went to a validation or a save."""
        self._left_out += seconds

    def read(self, steps: int, samples: int) -> Span:
        """All time so far; the difference of two readings is a span."""
        return Span(time.perf_counter() - self._left_out, self._waited, steps, samples)


def between(before: Span, now: Span) -> Span:
    """What happened between two readings."""
    return Span(
        now.seconds - before.seconds,
        now.data_seconds - before.data_seconds,
        now.steps - before.steps,
        now.samples - before.samples,
    )


class Smoothed:
    """Throughput and share of data, as exponential averages over time: what a person can read off a bar."""

    def __init__(self) -> None:
        self._weight = self._rate = self._share = 0.0

    def add(self, span: Span) -> None:
        if span.seconds <= 0:
            return
        keep = math.exp(-span.seconds / SMOOTHING_SECONDS)
        self._weight = keep * self._weight + (1 - keep)
        self._rate = keep * self._rate + (1 - keep) * span.samples_per_second
        self._share = keep * self._share + (1 - keep) * span.data_share

    def __str__(self) -> str:
        """`1,234 samples/s, 12 % waiting for data`; empty before the first span."""
        if not self._weight:
            return ""
        rate, share = self._rate / self._weight, self._share / self._weight
        shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        return f"{shown} samples/s, {share:.0%} waiting for data"


class DataWatch:
    """Says once when training mostly waits for its data."""

    def __init__(self) -> None:
        self._seen = Span(0.0, 0.0, 0, 0)
        self._begun = self._told = False

    def judge(self, span: Span, workers: int) -> str | None:
        """What to say after another span between two logs, if anything; the first is left out, as workers start in it.

        Args:
            workers: the processes that read data.
        """
        if not self._begun:
            self._begun = True
            return None
        self._seen += span
        if self._told or self._seen.seconds < LEAST_SECONDS or self._seen.data_share <= SLOW_DATA:
            return None
        self._told = True
        return (
            f"{self._seen.data_share:.0%} of the training time goes by waiting for data: "
            f"raise data.workers (now {workers}), or make a sample cheaper to read"
        )
