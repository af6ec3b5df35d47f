"""Conditions that end a run before its planned end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from flambeau.callbacks.scores import Watched
from flambeau.errors import UsageError
from flambeau.registry import register
from flambeau.training.callback import Callback, Outcome
from flambeau.training.progress import Clock
from flambeau.training.trainer import Trainer

LOOK_SECONDS = 1.0
"""Between two looks for the file: on a network's file system one may take milliseconds."""


@register.callback("stop_when")
class StopWhen(Callback):
    """End the run, as a finished one, when one of several things happens.

    Patience (no improvement for a while) is `trainer.early_stopping`. Losses and gradients that are not finite are the
    business of `trainer.nan_policy`. `time_limit` leaves a run to be resumed, where `minutes` here finishes it.

    Args:
        reaches: the score is as good as this, or better.
        worse_than_best_by: the score is so many times worse than the best so far, of scores above zero; or it is NaN.
        minutes: the run has been trained for so long, over all its resumes.
        samples: so many training samples have been seen.
        file: a file of this name is in the run folder (`touch RUN/STOP`); it is removed at the end.
        score, mode: of which score, and whether lower or higher is better; default: the one that is monitored.

    Raises:
        UsageError: no condition is given, or validation does not give the score.
    """

    def __init__(
        self,
        *,
        reaches: float | None = None,
        worse_than_best_by: Annotated[float, Gt(1)] | None = None,
        minutes: Annotated[float, Gt(0)] | None = None,
        samples: Annotated[int, Ge(1)] | None = None,
        file: str | None = None,
        score: str | None = None,
        mode: Literal["min", "max"] | None = None,
    ) -> None:
        conditions = {
            "reaches": reaches,
            "worse_than_best_by": worse_than_best_by,
            "minutes": minutes,
            "samples": samples,
            "file": file,
        }
        if all(value is None for value in conditions.values()):
            raise UsageError("callback stop_when: no condition is given", remedy=f"give one of {', '.join(conditions)}")
        if file is not None and ("/" in file or file in ("", ".", "..")):
            raise UsageError(f"callback stop_when: file: '{file}' is no name of a file", remedy="file: STOP")
        if reaches is None and worse_than_best_by is None and (score is not None or mode is not None):
            raise UsageError("callback stop_when: no condition reads score and mode", remedy="give reaches, for one")
        self.reaches, self.worse_than_best_by = reaches, worse_than_best_by
        self.minutes, self.samples, self.file = minutes, samples, file
        self._watched = Watched(score, mode, "callback stop_when")
        self._best: float | None = None
        self._seconds_before = 0.0
        self._started = time.monotonic()
        self._look = Clock(LOOK_SECONDS)

    def on_setup(self, trainer: Trainer) -> None:
        if self.reaches is not None or self.worse_than_best_by is not None:
            self._watched.resolve(trainer)

    def on_fit_start(self, trainer: Trainer) -> None:
        self._started = time.monotonic()
        self._look = Clock(0.0)
        self._count(trainer)

    def on_step_end(self, trainer: Trainer) -> None:
        self._count(trainer)
        if not trainer.world.is_main:
            return  # what follows one process may see before the others: rank 0 tells them
        if self.minutes is not None and self._seconds() >= 60.0 * self.minutes:
            trainer.stop(f"the time budget of {self.minutes:g} minutes is used up")
        if self.file is not None and trainer.run_folder is not None and self._look.struck():
            self._look = Clock(LOOK_SECONDS)
            if (trainer.run_folder.path / self.file).exists():
                trainer.stop(f"there is a file {self.file} in the run folder")

    def on_validation_end(self, trainer: Trainer, scores: Mapping[str, float]) -> None:
        if self.reaches is None and self.worse_than_best_by is None:
            return
        value, name = self._watched.value(scores), self._watched.name
        if self.reaches is not None and self._watched.reaches(value, self.reaches):
            trainer.stop(f"{name} has reached {self.reaches:g}", everywhere=True)
        factor, best = self.worse_than_best_by, self._best
        if factor is not None and best is not None and self._watched.is_worse_by(factor, value, best):
            reason = f"{name} of {value:g} is over {factor:g} times worse than the best, {best:g}"
            trainer.stop(reason, everywhere=True)
        if value == value and (best is None or self._watched.reaches(value, best)):  # not NaN
            self._best = value

    def on_exit(self, trainer: Trainer, outcome: Outcome) -> None:
        # Only now: a run that is killed before it has ended must find it again.
        if self.file is not None and outcome == "finished" and trainer.run_folder is not None and trainer.world.is_main:
            (trainer.run_folder.path / self.file).unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """The clock is in it only where a time budget reads it, so that all other runs have the same bits again."""
        return {"best": self._best, "seconds": self._seconds() if self.minutes is not None else 0.0}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._best, self._seconds_before = state["best"], state["seconds"]

    def _count(self, trainer: Trainer) -> None:
        if self.samples is not None and trainer.state.samples >= self.samples:
            trainer.stop(f"{trainer.state.samples} samples have been seen", everywhere=True)

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started
