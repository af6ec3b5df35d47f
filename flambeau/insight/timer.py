"""Times of blocks of code, by name; what a run's blocks take is in its record."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager
from types import TracebackType
from typing import Self


class Totals:
    """The seconds of every name since they were last taken; from any thread."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._mutex = threading.Lock()

    def add(self, name: str, seconds: float) -> None:
        with self._mutex:
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """The seconds by name, and begin anew."""
        with self._mutex:
            taken, self._seconds = self._seconds, {}
        return taken


class _Open(threading.local):
    """The names of the blocks that this thread is in."""

    def __init__(self) -> None:
        self.names: list[str] = []


_open = _Open()
_collected_by: list[Totals] = []


@contextmanager
def collected_by(totals: Totals) -> Iterator[None]:
    """In the block, timers report to `totals`: of runs within runs, to the innermost."""
    _collected_by.append(totals)
    try:
        yield
    finally:
        _collected_by.remove(totals)


class Timer(ContextDecorator):
    """See `timer`.

    Attributes:
        name: with those of the blocks around it: `step/forward`.
        seconds: of the last block, once it has ended.
    """

    def __init__(self, name: str, *, synchronize: bool = False, say: bool = False) -> None:
        self.own_name = self.name = name
        self.seconds = 0.0
        self._synchronize = synchronize
        self._say = say
        self._begun = 0.0

    def __enter__(self) -> Self:
        _open.names.append(self.own_name)
        self.name = "/".join(_open.names)
        if self._synchronize:
            _wait_for_device()
        self._begun = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._synchronize and error is None:  # after an error of the device's it would raise another
            _wait_for_device()
        self.seconds = time.perf_counter() - self._begun
        _open.names.pop()
        if _collected_by:
            _collected_by[-1].add(self.name, self.seconds)
        if self._say:
            print(f"{self.name}: {self.seconds:.6g} s")

    def _recreate_cm(self) -> Self:
        # Each call of a decorated function has a clock of its own: it may call itself.
        return type(self)(self.own_name, synchronize=self._synchronize, say=self._say)


def timer(name: str, *, synchronize: bool = False, say: bool = False) -> Timer:
    """Take the time of a block, or of each call of a function: `with timer("forward"): ...`, `@timer("forward")`.

    In a run, the seconds that blocks of a name took since the last record are written with it: to `timing.jsonl` as
    `timer/<name>`, to trackers as `time/timer/<name>`. A block within another is called `outer/inner`.

    Args:
        name: of the block.
        synchronize: wait for the accelerator before and after. Without, the time is the host's, which an accelerator
            lets run ahead; with, the run is slower than it was.
        say: print the time at the end of the block.
    """
    return Timer(name, synchronize=synchronize, say=say)


def _wait_for_device() -> None:
    torch = sys.modules.get("torch")  # who has not imported it has nothing running
    if torch is not None and torch.accelerator.is_available():
        torch.accelerator.synchronize()
