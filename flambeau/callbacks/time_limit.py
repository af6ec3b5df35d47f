"""Leave in good order before somebody else ends the run."""

from __future__ import annotations

import time
from typing import Annotated

from annotated_types import Gt

from flambeau.registry import register
from flambeau.training.callback import Callback
from flambeau.training.trainer import Trainer


@register.callback("time_limit")
class TimeLimit(Callback):
    """Save and leave as 'preempted' once this process has trained for a time; `flambeau resume` goes on.

    Args:
        minutes: from the start of this process's training; a resumed run has them anew.
    """

    def __init__(self, minutes: Annotated[float, Gt(0)]) -> None:
        self.minutes = minutes
        self._end = float("inf")

    def on_fit_start(self, trainer: Trainer) -> None:
        self._end = time.monotonic() + 60.0 * self.minutes

    def on_step_end(self, trainer: Trainer) -> None:
        if time.monotonic() >= self._end:
            trainer.preempt(f"the time limit of {self.minutes:g} minutes")
