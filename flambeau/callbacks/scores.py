"""The validation score that a callback looks at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from flambeau.errors import UsageError
from flambeau.training.monitor import choose_monitor
from flambeau.training.trainer import Trainer


class Watched:
    """A score by name, and which of its values are better.

    Args:
        score: `val/accuracy`, `accuracy`, or None for the one that the trainer monitors.
        mode: whether lower or higher is better; None for what is known of it.
        who: the callback, for errors.
    """

    def __init__(self, score: str | None, mode: Literal["min", "max"] | None, who: str) -> None:
        self._score, self._mode, self._who = score, mode, who
        self.name, self.mode = score or "", mode or "max"

    def resolve(self, trainer: Trainer) -> None:
        """Find out what is meant.

        Raises:
            UsageError: there is no such score, or no validation data.
        """
        if trainer.val_data is None:
            raise UsageError(f"{self._who}: there is no validation data", remedy="give some, or leave the callback out")
        if self._score is None:
            self.name, self.mode = trainer.monitor, self._mode or trainer.mode
            return
        settings = replace(trainer.settings, monitor=self._score, monitor_mode=self._mode)
        try:
            self.name, self.mode = choose_monitor(settings, trainer.metrics)
        except UsageError as error:
            raise UsageError(f"{self._who}: {error.message}", remedy=error.remedy) from None

    def value(self, scores: Mapping[str, float]) -> float:
        """Its value among the scores of a validation.

        Raises:
            UsageError: a metric of several values gives none of this name.
        """
        if self.name not in scores:
            raise UsageError(f"{self._who}: no score is called '{self.name}'", remedy=f"there are {', '.join(scores)}")
        return scores[self.name]

    def reaches(self, value: float, mark: float) -> bool:
        """Whether `value` is as good as `mark`, or better; what is not a number never is."""
        return value >= mark if self.mode == "max" else value <= mark

    def is_worse_by(self, factor: float, value: float, best: float) -> bool:
        """Whether `value` is more than `factor` times worse than `best`, both above zero; NaN always is."""
        if math.isnan(value):
            return True
        if best <= 0:
            return False
        return value > factor * best if self.mode == "min" else value * factor < best
