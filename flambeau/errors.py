"""Errors that speak to the user: what is wrong, where, and what to do about it.

The command line prints a :class:`FlambeauError` as a message, without a traceback, and leaves with its
`exit_status`. Any other exception is a bug (the user's or ours) and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PREEMPTED = 75
"""Stopped by a signal or a time limit after saving; `flambeau resume` goes on (EX_TEMPFAIL of sysexits.h)."""


class FlambeauError(Exception):
    """A failure with a message for people: what happened, and the remedy if there is one."""

    exit_status = EXIT_FAILED

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message if remedy is None else f"{message}\n  {remedy}")
        self.message = message
        self.remedy = remedy


class UsageError(FlambeauError):
    """A wrong command line or a part that cannot be used as asked; found before any work."""

    exit_status = EXIT_USAGE


class MissingExtraError(UsageError):
    """An optional library is needed and not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} is not installed", remedy=f"pip install 'flambeau[{extra}]'")


class RunFolderError(UsageError):
    """A run folder is in use, already finished, missing or not one."""


class CheckpointError(FlambeauError):
    """A checkpoint could not be written, or none that is whole can be read."""


@dataclass(frozen=True)
class Problem:
    """One fault of a configuration."""

    place: str
    """Where the value was written: `configs/lenet.yaml:7`, `FLAMBEAU__SEED`, `command line`."""
    key: str
    """The dotted key, e.g. `optimizer.weigth_decay`; empty when the fault is of a whole file."""
    message: str
    suggestion: str | None = None
    """The nearest right name or the remedy, as the end of a sentence: `did you mean 'seed'?`."""

    def __str__(self) -> str:
        head = f"{self.place}: {self.key}: " if self.key else f"{self.place}: "
        return head + self.message + (f"; {self.suggestion}" if self.suggestion else "")


class ConfigError(UsageError):
    """All faults of one configuration, at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        count = len(self.problems)
        head = f"{count} problem{'s' if count != 1 else ''} in the configuration:"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]))
