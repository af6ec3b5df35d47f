"""What is asked of a run while it makes a step, and done between two: to stop, to leave, to save."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flambeau.training.trainer import Trainer


class Requests:
    """Reasons by kind: `stop`, `preempt`, `save`."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._asked: dict[str, str] = {}

    def add(self, kind: str, reason: str) -> None:
        """Ask for something; the first reason counts. A process by itself does it at once."""
        self._asked.setdefault(kind, reason)
        if self._trainer.world.size == 1:
            self.settle(self._trainer.state.step, None)

    def settle(self, step: int, signal: str | None) -> None:
        """Do what signals, clocks and callbacks have asked for: of several processes, all after the same step."""
        trainer = self._trainer
        if signal is not None and trainer.preemption is None:
            self._asked.setdefault("preempt", signal)
        decisions, self._asked = self._asked, {}
        if trainer.team is not None:
            meeting = trainer.due.log(step) or trainer.due.validation(step)
            decisions = trainer.team.settle(step, decisions, meeting=meeting)
        trainer.preemption = trainer.preemption or decisions.get("preempt")
        trainer.stop_reason = trainer.stop_reason or decisions.get("stop")
        trainer.saves = trainer.saves or "save" in decisions
