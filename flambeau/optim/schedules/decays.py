"""Shapes that fall over the whole run, or only at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval

from flambeau.errors import UsageError
from flambeau.optim.schedules.base import Schedule
from flambeau.registry import register


@register.scheduler("exponential")
class Exponential(Schedule):
    """Multiplied by the same number each step, from 1 to `final_factor` at the end of the run.

    Args:
        final_factor: the factor that the run ends at.
    """

    def __init__(self, final_factor: Annotated[float, Interval(gt=0, le=1)] = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.final_factor = final_factor

    def factor(self, step: int, steps: int) -> float:
        return float(self.final_factor ** (step / steps))


@register.scheduler("polynomial")
class Polynomial(Schedule):
    """From 1 to `final_factor` by a power of the part of the run that is left.

    Args:
        power: of the part that is left; 1 is a straight line.
        final_factor: the factor that the run ends at.
    """

    def __init__(
        self,
        power: Annotated[float, Gt(0)] = 2.0,
        final_factor: Annotated[float, Interval(ge=0, le=1)] = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.power = power
        self.final_factor = final_factor

    def factor(self, step: int, steps: int) -> float:
        return float(self.final_factor + (1 - self.final_factor) * (1 - step / steps) ** self.power)


@register.scheduler("inverse_sqrt")
class InverseSqrt(Schedule):
    """Falls with the square root of the step, whatever the length of the run (Vaswani et al., 2017, eq. 3).

    Args:
        timescale: steps after warm-up at which the factor is 0.71; default: the steps of the warm-up, as in the paper.
    """

    def __init__(self, timescale: Annotated[int, Ge(1)] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if timescale is None and self.warmup_steps == 0:
            raise UsageError(
                "scheduler: inverse_sqrt takes its time scale from the warm-up, and there is none",
                remedy="give scheduler.warmup_steps, or scheduler.timescale",
            )
        self.timescale = timescale or self.warmup_steps

    def factor(self, step: int, steps: int) -> float:
        return float((1 + step / self.timescale) ** -0.5)


@register.scheduler("wsd")
class WSD(Schedule):
    """Warm-up, a long stable phase at the full rate, and a decay at the end (Hu et al., 2024; Hägele et al., 2024).

    Also called a trapezoid. The decay's length is given in one of three units; default: a fifth of the run.

    Args:
        decay_steps: length of the decay in optimizer steps.
        decay_epochs: length of the decay in epochs.
        decay_part: length of the decay as a part of the run.
        decay: how the factor falls; `sqrt` is one minus the square root of the decay's progress.
        final_factor: the factor that the run ends at.
    """

    def __init__(
        self,
        decay_steps: Annotated[int, Ge(1)] | None = None,
        decay_epochs: Annotated[float, Gt(0)] | None = None,
        decay_part: Annotated[float, Interval(gt=0, le=1)] | None = None,
        decay: Literal["linear", "cosine", "sqrt"] = "linear",
        final_factor: Annotated[float, Interval(ge=0, le=1)] = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        length = self.length("scheduler.decay", steps=decay_steps, epochs=decay_epochs, part=decay_part)
        left = max(self.total_steps - self.warmup_steps, 1)
        if length is not None and round(length) > left and self.total_steps:
            raise UsageError(
                f"scheduler: a decay of {round(length):,} steps does not fit into the {left:,} steps after the warm-up",
                remedy="make the decay shorter or the run longer",
            )
        self.decay_steps = min(max(round(self.total_steps / 5 if length is None else length), 1), left)
        self.decay = decay
        self.final_factor = final_factor

    def factor(self, step: int, steps: int) -> float:
        progress = max(step - (steps - self.decay_steps), 0) / self.decay_steps
        return self.final_factor + (1 - self.final_factor) * _fall(self.decay, progress)


def _fall(shape: str, progress: float) -> float:
    """From 1 to 0."""
    if shape == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1 - (math.sqrt(progress) if shape == "sqrt" else progress)


@register.scheduler("piecewise")
class Piecewise(Schedule):
    """The factor that is given for the current epoch: constant, and then another.

    Args:
        factors: pairs of an epoch (from 0) and the factor that holds from its first step on, in the order of the
            epochs: `[[0, 1.0], [30, 0.1], [60, 0.01]]`. Before the first of them the factor is 1.
    """

    def __init__(
        self,
        factors: Sequence[tuple[Annotated[int, Ge(0)], Annotated[float, Interval(ge=0, le=1)]]],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        pairs = [tuple(pair) for pair in factors]
        for pair in pairs:
            # Checked here too: in Python nobody has compared them with their types.
            whole = len(pair) == 2 and isinstance(pair[0], int) and not isinstance(pair[0], bool) and pair[0] >= 0
            if not whole or not 0 <= pair[1] <= 1:
                raise UsageError(
                    f"scheduler.factors: {list(pair)} is not an epoch and a factor between 0 and 1",
                    remedy="the epoch comes first: [30, 0.1]",
                )
        epochs = [epoch for epoch, _ in pairs]
        if any(later <= earlier for earlier, later in pairwise(epochs)):
            raise UsageError(
                f"scheduler.factors: the epochs {epochs} do not rise", remedy="the epoch comes first: [30, 0.1]"
            )
        self.factors = [
            (round(self.length("scheduler.factors", epochs=epoch) or 0), float(factor)) for epoch, factor in pairs
        ]

    def factor(self, step: int, steps: int) -> float:
        reached = [factor for start, factor in self.factors if start <= step + self.warmup_steps]
        return reached[-1] if reached else 1.0
