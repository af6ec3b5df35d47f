"""Scores that are reached once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from flambeau.callbacks.scores import Watched
from flambeau.errors import UsageError
from flambeau.registry import register
from flambeau.training.callback import Callback
from flambeau.training.trainer import Trainer


@register.callback("milestones")
class Milestones(Callback):
    """Say once when a validation score passes a mark, and keep the checkpoint of that step or end the run.

    A mark is passed by the first score that is as good or better. A mark that is passed stays so over every resume.

    Args:
        marks: the scores, in any order.
        score: `val/accuracy`; default: the score that is monitored.
        mode: whether lower or higher is better; default: what is known of the score.
        then: `say` it and no more; `save` a checkpoint at once, and keep it for good; `stop` the run as a finished one
            once all marks are passed.

    Raises:
        UsageError: there are no marks, or validation does not give the score.
    """

    def __init__(
        self,
        marks: list[float],
        *,
        score: str | None = None,
        mode: Literal["min", "max"] | None = None,
        then: Literal["say", "save", "stop"] = "say",
    ) -> None:
        if not marks:
            raise UsageError("callback milestones: no marks are given", remedy="marks: [0.9, 0.95]")
        self.marks = [float(mark) for mark in marks]
        self.then = then
        self._watched = Watched(score, mode, "callback milestones")
        self._passed: set[float] = set()

    def on_setup(self, trainer: Trainer) -> None:
        self._watched.resolve(trainer)

    def on_validation_end(self, trainer: Trainer, scores: Mapping[str, float]) -> None:
        value = self._watched.value(scores)
        new = [mark for mark in self.marks if mark not in self._passed and self._watched.reaches(value, mark)]
        if not new:
            return
        self._passed.update(new)
        for mark in sorted(new):
            trainer.recorder.say(f"milestone: {self._watched.name} of {mark:g} passed at step {trainer.state.step}")
        if self.then == "save":
            trainer.keep()
        if self.then == "stop" and self._passed.issuperset(self.marks):
            trainer.stop(f"all milestones of {self._watched.name} are passed", everywhere=True)

    def state_dict(self) -> dict[str, Any]:
        return {"passed": sorted(self._passed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._passed = set(state["passed"])
