"""A clock that sits in the model: a training forward pass is the one event that every engine shares."""

from __future__ import annotations

import sys
import time
from collections import Counter
from types import FrameType
from typing import Any


class Finished(BaseException):
    """Ends a fit from inside the model when its times are taken; not an Exception, so that no engine keeps it."""


class Clock:
    """Times, or counts the function calls of, the steps from `start` to `stop` (numbers of forward passes).

    Both marks fall on the beginning of a forward pass, so that the stretch between them holds exactly
    `stop - start` whole steps with all that the engine does between two of them (the next batch, the
    optimizer, logging, ends of epochs), and nothing of its set-up and its end.
    """

    def __init__(self, start: int, stop: int, *, count_calls: bool = False, then_finish: bool = False) -> None:
        self.start = start
        self.stop = stop
        self.count_calls = count_calls
        self.then_finish = then_finish
        self.calls: Counter[str] = Counter()
        """Calls of Python functions by the file that defines them, and of C functions by the file that calls."""
        self.wall_s = float("nan")
        self.cpu_s = float("nan")
        self._step = -1
        self._next_mark = start

    def tick(self) -> None:
        """Called at the beginning of each training forward pass; about 0.1 µs."""
        self._step += 1
        if self._step == self._next_mark:
            self._mark()

    def _mark(self) -> None:
        if self._step == self.start:
            self._next_mark = self.stop
            self._wall, self._cpu = time.perf_counter(), time.process_time()
            if self.count_calls:
                sys.setprofile(self._count)
        else:
            sys.setprofile(None)
            self.wall_s = time.perf_counter() - self._wall
            self.cpu_s = time.process_time() - self._cpu  # of all threads of the process
            if self.then_finish:
                raise Finished

    def _count(self, frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            self.calls[frame.f_code.co_filename] += 1
