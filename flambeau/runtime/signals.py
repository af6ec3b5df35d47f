"""Signals become a flag that the loop looks at between two steps.

A handler does nothing else: saving inside it would write a state in the middle of a step.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, ClassVar, Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; what schedulers send before they kill; Slurm's usual choice for `--signal` before a time limit."""


class StopSignals:
    """While entered, the first stop signal sets `received`; a second Ctrl-C ends the program at once.

    Outside the main thread, where Python takes no handlers, it stays unset.

    Attributes:
        used: whether one was entered in this process: what a signal asks for is under way, or was done.
    """

    used: ClassVar[bool] = False

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        StopSignals.used = True
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
