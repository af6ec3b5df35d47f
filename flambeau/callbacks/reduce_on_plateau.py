"""A smaller learning rate when the score no longer improves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from flambeau.errors import UsageError
from flambeau.registry import register
from flambeau.training.callback import Callback
from flambeau.training.trainer import Trainer


@register.callback("reduce_on_plateau")
class ReduceOnPlateau(Callback):
    """Multiply all learning rates by `factor` whenever a score has not improved for `patience` validations.

    As `torch.optim.lr_scheduler.ReduceLROnPlateau` decides it. The rates are those of the schedule (constant, if there
    is none) times what this has come to, which is in every checkpoint; all processes decide as the first one does.

    Args:
        factor: what the rates are multiplied by each time.
        patience: validations without improvement that are borne; the rates fall after the next.
        min_delta: smallest change that counts as an improvement.
        cooldown: validations after a reduction during which none is counted.
        min_factor: the rates never fall below this share of the schedule's.
        monitor: the validation score, `val/loss`; default: the one that decides which checkpoint is best.
        mode: whether lower or higher is better; to be given together with `monitor`.
    """

    def __init__(
        self,
        factor: Annotated[float, Interval(gt=0, lt=1)] = 0.1,
        patience: Annotated[int, Ge(0)] = 10,
        min_delta: Annotated[float, Ge(0)] = 0.0,
        cooldown: Annotated[int, Ge(0)] = 0,
        min_factor: Annotated[float, Interval(ge=0, le=1)] = 0.0,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
    ) -> None:
        if (monitor is None) != (mode is None):
            missing = "mode" if mode is None else "monitor"
            raise UsageError(
                f"callbacks.reduce_on_plateau: {missing} is missing", remedy="give both monitor and mode, or neither"
            )
        self.factor = factor
        self.patience = patience
        self.min_delta = min_delta
        self.cooldown = cooldown
        self.min_factor = min_factor
        self.monitor = monitor
        self.mode = mode
        self.scale = 1.0
        self.best: float | None = None
        self.stale = 0
        self.cooling = 0

    def on_fit_start(self, trainer: Trainer) -> None:
        if trainer.val_data is None:
            raise UsageError(
                "callbacks.reduce_on_plateau: there is no validation data", remedy="give some, or leave it out"
            )
        self._apply(trainer)

    def on_validation_end(self, trainer: Trainer, scores: Mapping[str, float]) -> None:
        name = trainer.monitor if self.monitor is None else f"val/{self.monitor.removeprefix('val/')}"
        if name not in scores:
            raise UsageError(
                f"callbacks.reduce_on_plateau.monitor is '{self.monitor}', and validation gives {', '.join(scores)}"
            )
        # Were it only for the last bit of a score, no process may decide otherwise than the first.
        score = trainer.world.broadcast(scores[name])
        if self._is_due(score, self.mode or trainer.mode):
            reduced = max(self.scale * self.factor, self.min_factor)
            if reduced < self.scale:
                self.scale = reduced
                trainer.recorder.say(
                    f"step {trainer.state.step}: {name} has not improved; the learning rates are now "
                    f"{self.scale:.3g} of the schedule's"
                )
            self._apply(trainer)

    def _is_due(self, score: float, mode: Literal["min", "max"]) -> bool:
        """Take note of a score; true if the rates are to fall."""
        gain = math.inf if self.best is None else score - self.best if mode == "max" else self.best - score
        if not math.isnan(score) and gain > self.min_delta:
            self.best, self.stale = score, 0
        else:
            self.stale += 1
        if self.cooling > 0:
            self.cooling, self.stale = self.cooling - 1, 0
        if self.stale <= self.patience:
            return False
        self.cooling, self.stale = self.cooldown, 0
        return True

    def _apply(self, trainer: Trainer) -> None:
        for stepper in trainer.steppers.values():
            stepper.scale = self.scale

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale, "best": self.best, "stale": self.stale, "cooling": self.cooling}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.scale, self.best = state["scale"], state["best"]
        self.stale, self.cooling = state["stale"], state["cooling"]
