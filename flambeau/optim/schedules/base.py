"""What a schedule is, and warm-up, which all have."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from flambeau.errors import UsageError


class Schedule:
    """The factor of every group's learning rate at each optimizer step.

    A pure function: `schedule(step)` for the step's number, from 0, is the same on any number of devices and
    after any resume; there is no state to save. From `total_steps` on it stays at its end.

    A subclass defines `factor(step, steps)`, the shape after warm-up.

    Args:
        total_steps: optimizer steps of the whole run, warm-up included.
        warmup_steps: optimizer steps before the shape begins.
        warmup: how the factor rises from `warmup_factor` to the shape's first value (Goyal et al., 2017).
            `constant` stays at `warmup_factor` and then jumps.
        warmup_factor: share of the shape's first value at step 0; more than 0 for `exponential`.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        warmup_steps: Annotated[int, Ge(0)] = 0,
        warmup: Literal["linear", "constant", "exponential", "cosine"] = "linear",
        warmup_factor: Annotated[float, Interval(ge=0, le=1)] = 0.01,
    ) -> None:
        if warmup == "exponential" and warmup_factor == 0:
            raise UsageError("scheduler: an exponential warm-up cannot start at warmup_factor 0")
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.warmup = warmup
        self.warmup_factor = warmup_factor

    def __call__(self, step: int) -> float:
        steps = max(self.total_steps - self.warmup_steps, 1)
        if step >= self.warmup_steps:
            return self.factor(min(step - self.warmup_steps, steps), steps)
        return self._rise(step / self.warmup_steps) * self.factor(0, steps)

    def factor(self, step: int, steps: int) -> float:
        """The shape at a step after warm-up: `step` counts from the end of warm-up, 0 <= step <= steps."""
        raise NotImplementedError

    def _rise(self, progress: float) -> float:
        """Warm-up: from `warmup_factor` at progress 0 to 1 at progress 1."""
        start = self.warmup_factor
        if self.warmup == "constant":
            return start
        if self.warmup == "exponential":
            return float(start ** (1 - progress))
        if self.warmup == "cosine":
            return start + (1 - start) * (1 - math.cos(math.pi * progress)) / 2
        return start + (1 - start) * progress
