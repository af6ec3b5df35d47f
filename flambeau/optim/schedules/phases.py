"""A schedule of the learning rate and of the weight decay, written phase by phase."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

from flambeau.errors import UsageError
from flambeau.optim.schedules.base import Schedule
from flambeau.registry import register

Factor = Annotated[float, Ge(0)]


@dataclass(kw_only=True)
class Phase:
    """One phase: how long it lasts, and from where to where it leads."""

    epochs: Annotated[float, Gt(0)] | None = None
    """Length in epochs. A phase without a length has what the others leave of the run."""
    steps: Annotated[int, Ge(1)] | None = None
    """Length in optimizer steps."""
    part: Annotated[float, Interval(gt=0, le=1)] | None = None
    """Length as a part of the run."""
    lr_factor: tuple[Factor, Factor] | Factor | None = None
    """Factor of the learning rate at the phase's beginning and at its end. One number is the end, and the phase begins
    where the one before ended; default: it stays there."""
    weight_decay_factor: tuple[Factor, Factor] | Factor | None = None
    """The same for the weight decay."""
    shape: Literal["keep", "linear", "cosine", "exponential"] = "linear"
    """How the factors get from beginning to end; `keep` holds one number."""


@register.scheduler("phases")
class Phases(Schedule):
    """Phases one after the other, for the learning rate and the weight decay together.

    Args:
        phases: at least one; their lengths add up to the run, or one has none and gets the rest.
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps of an epoch, for lengths in epochs.
    """

    def __init__(self, phases: Sequence[Phase], *, total_steps: int, steps_per_epoch: int | None = None) -> None:
        super().__init__(total_steps=total_steps, steps_per_epoch=steps_per_epoch)
        if not phases:
            raise UsageError("scheduler.phases: there is no phase", remedy="give one at least")
        self._starts = self._lay_out(phases)
        rates, decays = 1.0, 1.0
        self._rates: list[_Course] = []
        self._decays: list[_Course] = []
        for number, phase in enumerate(phases):
            self._rates.append(_Course.of(phase.lr_factor, rates, phase.shape, f"phases.{number}.lr_factor"))
            self._decays.append(
                _Course.of(phase.weight_decay_factor, decays, phase.shape, f"phases.{number}.weight_decay_factor")
            )
            rates, decays = self._rates[-1].end, self._decays[-1].end
        self._schedules_decay = any(phase.weight_decay_factor is not None for phase in phases)

    def factor(self, step: int, steps: int) -> float:
        number, progress = self._place(step)
        return self._rates[number].at(progress)

    def weight_decay_factor(self, step: int) -> float | None:
        if not self._schedules_decay:
            return None
        number, progress = self._place(step)
        return self._decays[number].at(progress)

    def _place(self, step: int) -> tuple[int, float]:
        """The phase that a step is in, and the part of it that has passed."""
        if step >= self._starts[-1]:
            return len(self._starts) - 2, 1.0
        number = bisect_right(self._starts, step) - 1
        begin, end = self._starts[number], self._starts[number + 1]
        return number, (step - begin) / (end - begin)

    def _lay_out(self, phases: Sequence[Phase]) -> list[int]:
        """The step that each phase begins at, and the end of the last."""
        total = self.total_steps
        lengths = [
            self.length(f"scheduler.phases.{number}", steps=phase.steps, epochs=phase.epochs, part=phase.part)
            for number, phase in enumerate(phases)
        ]
        known = sum(length for length in lengths if length is not None)
        rest = [number for number, length in enumerate(lengths) if length is None]
        if len(rest) > 1:
            raise UsageError(
                f"scheduler.phases: {len(rest)} phases have no length (numbers {', '.join(map(str, rest))})",
                remedy="give all but one of them epochs, steps or part",
            )
        shown = f"the phases take {known:,.10g} steps, and the run has {total:,}"
        if not rest and abs(known - total) >= 0.5 and total:
            raise UsageError(
                f"scheduler.phases: {shown}",
                remedy="make them add up, or leave out the length of one: it gets the rest",
            )
        if rest and known >= total and total:
            raise UsageError(
                f"scheduler.phases: {shown}: nothing is left for phase {rest[0]}, which has no length",
                remedy="make the others shorter or the run longer",
            )
        starts, begin = [0], 0.0
        for length in lengths:
            begin += max(total - known, 0) if length is None else length
            starts.append(round(begin))
        return starts


@dataclass(frozen=True)
class _Course:
    """A factor's way through one phase."""

    begin: float
    end: float
    shape: str

    @classmethod
    def of(cls, given: tuple[float, float] | float | None, before: float, shape: str, key: str) -> _Course:
        if given is None:
            return cls(before, before, "keep")
        if not isinstance(given, tuple | list):
            return cls(given if shape == "keep" else before, given, shape)._checked(key)
        begin, end = given
        if shape == "keep" and begin != end:
            raise UsageError(
                f"scheduler.{key}: `keep` holds one number, not {list(given)}",
                remedy=f"write {begin:g}, or another shape",
            )
        return cls(begin, end, shape)._checked(key)

    def _checked(self, key: str) -> _Course:
        if self.shape == "exponential" and not (self.begin > 0 and self.end > 0):
            raise UsageError(
                f"scheduler.{key}: an exponential course from {self.begin:g} to {self.end:g} cannot touch 0",
                remedy="take another shape, or a small number",
            )
        return self

    def at(self, progress: float) -> float:
        if self.shape == "keep" or self.begin == self.end:
            return float(self.begin)
        if self.shape == "exponential":
            return float(self.begin * (self.end / self.begin) ** progress)
        if self.shape == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.begin + (self.end - self.begin) * progress
