"""Distributions of many numbers, in few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

BINS = 64


@dataclass(frozen=True)
class Histogram:
    """How numbers are distributed over bins of equal width."""

    counts: NDArray[np.int64]
    edges: NDArray[np.float64]
    """Of the bins, one more than there are bins."""
    sum: float
    sum_squares: float

    @classmethod
    def of(cls, values: Any) -> Self | None:
        """The histogram of the finite elements of a tensor or an array; None if there are none."""
        if hasattr(values, "detach"):
            values = values.detach().double().cpu().numpy()
        numbers = np.asarray(values, dtype=np.float64).ravel()
        numbers = numbers[np.isfinite(numbers)]
        if not len(numbers):
            return None
        counts, edges = np.histogram(numbers, bins=BINS)
        return cls(counts, edges, float(numbers.sum()), float(np.square(numbers).sum()))

    def fields(self) -> dict[str, Any]:
        """As TensorBoard's message has it."""
        return {
            "min": self.edges[0],
            "max": self.edges[-1],
            "num": self.counts.sum(),
            "sum": self.sum,
            "sum_squares": self.sum_squares,
            "bucket_limit": self.edges[1:].tolist(),
            "bucket": self.counts.tolist(),
        }
