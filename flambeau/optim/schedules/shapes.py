"""The shapes of the learning rate over a run."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval

from flambeau.errors import UsageError
from flambeau.optim.schedules.base import Schedule
from flambeau.registry import register


@register.scheduler("constant")
class Constant(Schedule):
    """The optimizer's own learning rate, after warm-up."""

    def factor(self, step: int, steps: int) -> float:
        return 1.0


@register.scheduler("linear")
class Linear(Schedule):
    """A straight line from 1 to `final_factor` at the end of the run.

    Args:
        final_factor: the factor that the run ends at.
    """

    def __init__(self, final_factor: Annotated[float, Ge(0)] = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.final_factor = final_factor

    def factor(self, step: int, steps: int) -> float:
        return 1 + (self.final_factor - 1) * (step / steps)


@register.scheduler("cosine")
class Cosine(Schedule):
    """Half a cosine from 1 to `final_factor` at the end of the run (Loshchilov & Hutter, 2017, eq. 5).

    Args:
        final_factor: the factor that the run ends at.
    """

    def __init__(self, final_factor: Annotated[float, Ge(0)] = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.final_factor = final_factor

    def factor(self, step: int, steps: int) -> float:
        return self.final_factor + (1 - self.final_factor) * (1 + math.cos(math.pi * (step / steps))) / 2


@register.scheduler("multistep")
class MultiStep(Schedule):
    """Multiplied by `gamma` at each milestone.

    Args:
        milestones: optimizer steps, warm-up included, as whole numbers; or parts of the run as numbers
            between 0 and 1 (0.5 is the middle).
        milestone_epochs: the same as epochs, in place of `milestones`.
        gamma: what the factor is multiplied by.
    """

    def __init__(
        self,
        milestones: Sequence[int | float] = (0.5, 0.75),
        milestone_epochs: Sequence[Annotated[float, Ge(0)]] | None = None,
        gamma: Annotated[float, Gt(0)] = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if milestone_epochs is not None:
            if tuple(milestones) != (0.5, 0.75):
                raise UsageError("scheduler: both milestones and milestone_epochs are given", remedy="give one of them")
            milestones = [round(self.length("scheduler.milestone", epochs=epoch) or 0) for epoch in milestone_epochs]
        for milestone in milestones:
            if milestone < 0 or (isinstance(milestone, float) and milestone > 1):
                raise UsageError(
                    f"scheduler.milestones: {milestone} is neither a number of steps nor a part of the run",
                    remedy="give whole numbers for steps, or numbers between 0 and 1 for parts of the run",
                )
        self.gamma = gamma
        self.milestones = sorted(
            round(milestone * self.total_steps) if isinstance(milestone, float) else milestone
            for milestone in milestones
        )

    def factor(self, step: int, steps: int) -> float:
        return float(self.gamma ** bisect_right(self.milestones, step + self.warmup_steps))


@register.scheduler("one_cycle")
class OneCycle(Schedule):
    """One rise to the optimizer's learning rate and one long fall (Smith & Topin, 2017).

    The learning rate of the optimizer is the highest of the cycle. Momentum stays as it is.

    Args:
        rise: part of the run in which the rate rises.
        start_factor: the factor at the first step.
        final_factor: the factor at the last step.
        anneal: shape of the rise and of the fall.
    """

    def __init__(
        self,
        rise: Annotated[float, Interval(gt=0, lt=1)] = 0.3,
        start_factor: Annotated[float, Interval(gt=0, le=1)] = 0.04,
        final_factor: Annotated[float, Interval(ge=0, le=1)] = 4e-6,
        anneal: Literal["cosine", "linear"] = "cosine",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rise = rise
        self.start_factor = start_factor
        self.final_factor = final_factor
        self.anneal = anneal

    def factor(self, step: int, steps: int) -> float:
        last = max(steps - 1, 1)
        top = min(max(self.rise * steps - 1, 0.0), last)
        if step < top:
            return self._between(self.start_factor, 1.0, step / top)
        if step >= last:
            return self.final_factor
        return self._between(1.0, self.final_factor, (step - top) / (last - top))

    def _between(self, start: float, end: float, progress: float) -> float:
        if self.anneal == "linear":
            return start + (end - start) * progress
        return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
