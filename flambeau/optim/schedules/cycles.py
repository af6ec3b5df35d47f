"""Shapes that fall several times in a run, each time from a new peak."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval

from flambeau.errors import UsageError
from flambeau.optim.schedules.base import Schedule
from flambeau.registry import register


class _Cyclic(Schedule):
    """Falls from a peak to `final_factor` within each cycle; the peaks may fall too."""

    starts: Sequence[float]
    """The step after warm-up at which each cycle begins; the first is 0."""
    shape: str = "cosine"
    final_factor: float = 0.0
    peak_decay: float = 1.0

    def cycle(self, step: int) -> int:
        """The number of the cycle, from 0, that a step of the run is in; the warm-up belongs to the first.

        For a trainer that trains other modules in other cycles: `trainer.stepper.schedule.cycle(state.updates)`.
        """
        steps = max(self.total_steps - self.warmup_steps, 1)
        return self._cycle(max(min(step - self.warmup_steps, steps - 1), 0))

    def _cycle(self, step: float) -> int:
        return bisect_right(self.starts, step) - 1

    def factor(self, step: int, steps: int) -> float:
        # At the very end the last cycle has come down: it does not begin anew.
        number = self._cycle(step if step < steps else steps - 0.5)
        begin = self.starts[number]
        progress = min((step - begin) / (self._end(number, steps) - begin), 1.0)
        peak = max(self.peak_decay**number, self.final_factor)
        fall = (1 + math.cos(math.pi * progress)) / 2 if self.shape == "cosine" else 1 - progress
        return self.final_factor + (peak - self.final_factor) * fall

    def _end(self, number: int, steps: int) -> float:
        raise NotImplementedError


@register.scheduler("cosine_restarts")
class CosineRestarts(_Cyclic):
    """Half a cosine from 1 to `final_factor`, begun anew after each cycle (SGDR, Loshchilov & Hutter, 2017).

    The first cycle's length is given in one of three units; the run may end within a cycle.

    Args:
        cycle_steps: length of the first cycle in optimizer steps.
        cycle_epochs: length of the first cycle in epochs.
        cycle_part: length of the first cycle as a part of the run.
        multiplier: each cycle is this many times as long as the one before.
        peak_decay: what the peak is multiplied by at each restart.
        final_factor: the factor that a cycle ends at.
    """

    def __init__(
        self,
        cycle_steps: Annotated[int, Ge(1)] | None = None,
        cycle_epochs: Annotated[float, Gt(0)] | None = None,
        cycle_part: Annotated[float, Interval(gt=0, le=1)] | None = None,
        multiplier: Annotated[float, Ge(1)] = 1.0,
        peak_decay: Annotated[float, Interval(gt=0, le=1)] = 1.0,
        final_factor: Annotated[float, Interval(ge=0, le=1)] = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        first = self.length("scheduler.cycle", steps=cycle_steps, epochs=cycle_epochs, part=cycle_part)
        if first is None:
            raise UsageError(
                "scheduler: cosine_restarts needs the length of its first cycle",
                remedy="give one of cycle_steps, cycle_epochs and cycle_part",
            )
        self.multiplier = multiplier
        self.peak_decay = peak_decay
        self.final_factor = final_factor
        self._lengths = [max(first, 1.0)]
        starts = [0.0]
        while (begin := starts[-1] + self._lengths[-1]) < self.total_steps - self.warmup_steps:
            starts.append(begin)
            self._lengths.append(self._lengths[-1] * multiplier)
        self.starts = starts

    def _end(self, number: int, steps: int) -> float:
        return self.starts[number] + self._lengths[number]


@register.scheduler("cycles")
class Cycles(_Cyclic):
    """A number of equal cycles, each falling from its peak to `final_factor`.

    Args:
        cycles: how many there are between warm-up and the end of the run.
        shape: how the factor falls within a cycle.
        peak_decay: what the peak is multiplied by from one cycle to the next.
        final_factor: the factor that a cycle ends at.
    """

    def __init__(
        self,
        cycles: Annotated[int, Ge(1)] = 4,
        shape: Literal["cosine", "linear"] = "cosine",
        peak_decay: Annotated[float, Interval(gt=0, le=1)] = 1.0,
        final_factor: Annotated[float, Interval(ge=0, le=1)] = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.shape = shape
        self.peak_decay = peak_decay
        self.final_factor = final_factor
        steps = max(self.total_steps - self.warmup_steps, 1)
        self.starts = [number * steps / cycles for number in range(cycles)]

    def _end(self, number: int, steps: int) -> float:
        return float(self.starts[number + 1]) if number + 1 < len(self.starts) else float(steps)
