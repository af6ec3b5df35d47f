"""The loss over a sweep of learning rates, and the rate that it suggests (Smith, 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LrCurve:
    """A sweep: the loss of each step, made with a rate that grew from step to step."""

    rates: Sequence[float]
    losses: Sequence[float]
    """Of the training batch of each step."""
    diverged: bool = False
    """Whether the sweep was ended because the loss ran away."""

    @property
    def smoothed(self) -> list[float]:
        """The mean of each loss with its neighbours, up to a twentieth of the sweep on either side: nothing lags."""
        reach = max(len(self.losses) // 20, 1)
        means = []
        for place in range(len(self.losses)):
            near = min(reach, place, len(self.losses) - 1 - place)  # as many on either side
            window = self.losses[place - near : place + near + 1]
            means.append(sum(window) / len(window))
        return means

    @property
    def valley(self) -> float | None:
        """The middle of the longest fall of the loss, by the logarithm of the rate; None if it never falls for long.

        The longest strictly falling subsequence of the smoothed losses, as in fastai's `valley`, from where a twentieth
        of the whole fall is done: on the plain before it, noise falls too.
        """
        losses = self.smoothed
        if not losses:
            return None
        lowest = min(range(len(losses)), key=losses.__getitem__)
        highest = max(losses[: lowest + 1])
        edge = highest - 0.05 * (highest - losses[lowest])
        onset = max((place + 1 for place in range(lowest) if losses[place] > edge), default=0)
        lengths = dict.fromkeys(range(onset, len(losses)), 1)
        begins = {place: place for place in lengths}
        for place in lengths:
            for earlier in range(onset, place):
                if losses[earlier] > losses[place] and lengths[earlier] >= lengths[place]:
                    lengths[place], begins[place] = lengths[earlier] + 1, begins[earlier]
        end = max(lengths, key=lengths.__getitem__)
        if lengths[end] < max(len(losses) // 20, 3):
            return None
        return self.rates[(begins[end] + end) // 2]

    @property
    def steepest(self) -> float | None:
        """The rate at which the smoothed loss falls fastest by the logarithm of the rate, before its lowest point."""
        losses = self.smoothed
        lowest = min(range(len(losses)), key=losses.__getitem__, default=0)
        slopes = [
            (losses[place + 1] - losses[place - 1]) / math.log(self.rates[place + 1] / self.rates[place - 1])
            for place in range(1, lowest)
        ]
        best = min(range(len(slopes)), key=slopes.__getitem__, default=None)
        return self.rates[best + 1] if best is not None and slopes[best] < 0 else None

    @property
    def lowest(self) -> float | None:
        """The rate with the lowest smoothed loss: too high to train with; a tenth of it is a rule of thumb."""
        losses = self.smoothed
        return self.rates[min(range(len(losses)), key=losses.__getitem__)] if losses else None


class Runaway:
    """Tells when the loss of a sweep has run away: its running mean is far above the lowest so far, or not a number.

    Args:
        limit: multiple of the lowest running mean.
        keep: weight of the older losses in the running mean.
    """

    def __init__(self, limit: float = 4.0, keep: float = 0.8) -> None:
        self._limit, self._keep = limit, keep
        self._sum, self._weight, self._lowest = 0.0, 0.0, math.inf
        self._first: float | None = None

    def __call__(self, loss: float) -> bool:
        self._sum = self._keep * self._sum + (1 - self._keep) * loss
        self._weight = self._keep * self._weight + (1 - self._keep)
        mean = self._sum / self._weight
        self._lowest = min(self._lowest, mean)
        self._first = loss if self._first is None else self._first
        # A loss that comes near to 0, or below it, is no measure; the one at the beginning is.
        scale = max(abs(self._lowest), abs(self._first) / 2)
        return not math.isfinite(mean) or mean > self._lowest + (self._limit - 1) * scale
