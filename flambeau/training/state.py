"""Where a run stands: the numbers that a checkpoint carries besides tensors."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal


@dataclass
class TrainState:
    """The position of a run, counted in optimizer steps and samples."""

    step: int = 0
    """Global batches consumed. The order of data and all randomness are functions of it."""
    samples: int = 0
    """Training samples consumed."""
    skipped: int = 0
    """Steps whose update was left out because a loss or gradient was not finite; schedules do not count them."""
    skipped_in_row: int = 0
    """Of these, the ones since the last update that was applied."""
    best_score: float | None = None
    """Best value of the monitored score so far."""
    best_step: int | None = None
    """The step at which it was reached."""
    stale_validations: int = 0
    """Validations since then."""
    validated_step: int = -1
    """The last step that was validated."""

    @property
    def updates(self) -> int:
        """Updates applied: what schedules and averages count."""
        return self.step - self.skipped

    def skip(self) -> None:
        """Take note of an update that was left out."""
        self.skipped += 1

    def judge(self, score: float, mode: Literal["min", "max"], min_delta: float = 0.0) -> bool:
        """Take note of a validation score; true if it is the best so far by more than `min_delta`.

        A score that is not a number is never the best.
        """
        previous = self.best_score
        gain = math.inf if previous is None else score - previous if mode == "max" else previous - score
        if not math.isnan(score) and gain > min_delta:
            self.best_score, self.best_step, self.stale_validations = score, self.step, 0
            return True
        self.stale_validations += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for field in fields(self):
            setattr(self, field.name, state[field.name])
