"""What a schedule is, and warm-up, which all have."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from flambeau.errors import UsageError
from flambeau.optim.schedules.lengths import length_of


class Schedule:
    """The factor of every group's learning rate at each optimizer step.

    A pure function: `schedule(step)` for the step's number, from 0, is the same on any number of devices and
    after any resume; there is no state to save. From `total_steps` on it stays at its end.

    A subclass defines `factor(step, steps)`, the shape after warm-up.

    Args:
        total_steps: optimizer steps of the whole run, warm-up included.
        steps_per_epoch: optimizer steps of an epoch, for lengths in epochs; None where it is not known.
        warmup_steps: optimizer steps before the shape begins; default: none.
        warmup_epochs: the same in epochs, in place of `warmup_steps`.
        warmup: how the factor rises from `warmup_factor` to the shape's first value (Goyal et al., 2017).
            `constant` stays at `warmup_factor` and then jumps.
        warmup_factor: share of the shape's first value at step 0; more than 0 for `exponential`.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        steps_per_epoch: int | None = None,
        warmup_steps: Annotated[int, Ge(0)] | None = None,
        warmup_epochs: Annotated[float, Ge(0)] | None = None,
        warmup: Literal["linear", "constant", "exponential", "cosine"] = "linear",
        warmup_factor: Annotated[float, Interval(ge=0, le=1)] = 0.01,
    ) -> None:
        if warmup == "exponential" and warmup_factor == 0:
            raise UsageError("scheduler: an exponential warm-up cannot start at warmup_factor 0")
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.warmup_steps = round(self.length("scheduler.warmup", steps=warmup_steps, epochs=warmup_epochs) or 0)
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

    def weight_decay_factor(self, step: int) -> float | None:
        """The factor of every group's weight decay at a step of the run; None leaves it as it is."""
        return None

    def length(
        self, key: str, *, steps: float | None = None, epochs: float | None = None, part: float | None = None
    ) -> float | None:
        """A length in steps from whichever unit it is given in; None if in none.

        Raises:
            UsageError: it is given in two units, or in epochs where their length is not known.
        """
        return length_of(
            key,
            steps=steps,
            epochs=epochs,
            part=part,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
        )

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


def takes_epochs(scheduler: Callable[..., Schedule]) -> bool:
    """Whether what makes a schedule is to be told `steps_per_epoch` beside `total_steps`.

    It is where it has a parameter of this name, or is a subclass of :class:`Schedule` that hands keywords on.
    """
    inner: Any = scheduler
    while isinstance(inner, partial):
        inner = inner.func
    try:
        parameters = inspect.signature(inner).parameters
    except ValueError:
        return False
    if "steps_per_epoch" in parameters:
        return True
    hands_on = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    return hands_on and isinstance(inner, type) and issubclass(inner, Schedule)
