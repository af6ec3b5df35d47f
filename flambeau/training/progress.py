"""The progress bar of a run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from flambeau import console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

REFRESH_SECONDS = 0.25
"""Drawing costs about a millisecond; four times a second keeps it under half a percent of the time."""


class ProgressBar:
    """One bar over the whole run, and one over the evaluation that goes on or was the last.

    Both are drawn from the training thread at most every quarter of a second. Without a terminal nothing is drawn;
    lines of text still go through `say`.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled and console.is_terminal()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._evaluation: TaskID | None = None
        self._evaluation_clock = Clock(REFRESH_SECONDS)
        self._steps_per_epoch: int | None = None
        self._epochs: int | None = None

    def start(self, *, step: int, total: int, steps_per_epoch: int | None) -> None:
        if not self._enabled:
            return
        self._steps_per_epoch = steps_per_epoch
        self._epochs = -(-total // steps_per_epoch) if steps_per_epoch else None
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} {task.fields[unit]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console.console(),
            auto_refresh=False,
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task("training", total=total, completed=step, unit="steps", note="")

    @property
    def is_drawn(self) -> bool:
        """Whether there is a bar at the moment."""
        return self._progress is not None

    def update(self, *, step: int, note: str) -> None:
        if self._progress is None or self._task is None:
            return
        description = "training"
        if self._steps_per_epoch:
            epoch = min(step // self._steps_per_epoch + 1, self._epochs or 1)
            description = f"epoch {epoch}/{self._epochs}"
        self._progress.update(self._task, completed=step, description=description, note=note, refresh=True)

    def evaluating(self, done: int, total: int | None) -> None:
        """Show how far an evaluation is: batches of this process; called before each."""
        if self._progress is None or not self._evaluation_clock.struck():
            return
        if self._evaluation is None:
            self._evaluation = self._progress.add_task("evaluation", unit="batches", note="")
        self._progress.update(self._evaluation, total=total, completed=done, refresh=True)

    def end_evaluation(self, note: str) -> None:
        """Show what came out of the evaluation."""
        if self._progress is not None and self._evaluation is not None:
            total = next(task.total for task in self._progress.tasks if task.id == self._evaluation)
            self._progress.update(self._evaluation, completed=total, note=note, refresh=True)

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._evaluation = None


class Clock:
    """Says, for the price of reading the clock, when `seconds` have gone by."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = time.monotonic() + seconds

    def struck(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True
