"""Means over the steps since the last log line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from flambeau.runtime.world import World


class RunningMeans:
    """Weighted means of values that are noted at every step and read at each log line.

    Values and weights are kept as they come: Python numbers, or tensors on a device that nobody waits for until
    they are all read at once.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[float | torch.Tensor]] = {}
        self._weights: dict[str, list[float | torch.Tensor]] = {}
        self._sums: dict[str, _Sum] = {}

    def add(self, name: str, value: float | torch.Tensor, weight: float | torch.Tensor) -> None:
        values = self._values.get(name)
        if values is None:
            values = self._values[name] = []
            self._weights[name] = []
        values.append(value.detach() if isinstance(value, torch.Tensor) else value)
        self._weights[name].append(weight)

    def take(self, world: World | None = None) -> tuple[dict[str, float], dict[str, int]]:
        """The means over all processes, and begin anew.

        Returns:
            The means by name, and for each name with a value that is not finite the position of the first such value.
        """
        self._fold()
        own = {name: sums.numbers() for name, sums in self._sums.items()}
        self._sums.clear()
        merged = merge_states([own] if world is None else world.gather(own))
        means = {name: value / weight if weight else math.nan for name, (value, weight, _, _) in merged.items()}
        return means, {name: entry[3] for name, entry in merged.items() if entry[3] is not None}

    def __bool__(self) -> bool:
        return bool(self._values or self._sums)

    def state_dict(self) -> dict[str, Any]:
        self._fold()
        return {name: sums.numbers() for name, sums in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._values.clear()
        self._weights.clear()
        self._sums = {name: _Sum(*numbers) for name, numbers in state.items()}

    def _fold(self) -> None:
        """Add what was noted to the sums, one after the other: a run that goes on from sums gets the same bits."""
        for name, entries in self._values.items():
            sums = self._sums.setdefault(name, _Sum())
            for value, weight in zip(numbers_of(entries), numbers_of(self._weights[name]), strict=True):
                sums.add(value, weight)
        self._values.clear()
        self._weights.clear()


def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The states of several processes as one."""
    merged: dict[str, Any] = {}
    for name in dict.fromkeys(name for state in states for name in state):
        entries = [state[name] for state in states if name in state]
        firsts = [entry[3] for entry in entries if entry[3] is not None]
        merged[name] = [
            _exact_sum([entry[0] for entry in entries]),
            _exact_sum([entry[1] for entry in entries]),
            max(entry[2] for entry in entries),
            min(firsts) if firsts else None,
        ]
    return merged


class _Sum:
    """A weighted sum, its weight, how many values it has, and which of them was the first that is not finite."""

    __slots__ = ("count", "first_bad", "value", "weight")

    def __init__(self, value: float = 0.0, weight: float = 0.0, count: int = 0, first_bad: int | None = None) -> None:
        self.value, self.weight, self.count, self.first_bad = value, weight, count, first_bad

    def add(self, value: float, weight: float) -> None:
        if weight:  # what has no weight (a part of a batch without any target) is a mean of nothing and may be NaN
            self.value += value * weight
            self.weight += weight
            if self.first_bad is None and not math.isfinite(value):
                self.first_bad = self.count
            self.count += 1

    def numbers(self) -> list[Any]:
        return [self.value, self.weight, self.count, self.first_bad]


def _exact_sum(values: list[float]) -> float:
    """The exact sum, rounded once, whatever the order; NaN where infinities of both signs meet."""
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)


def numbers_of(entries: Sequence[float | torch.Tensor]) -> list[float]:
    """Numbers of `entries`, with at most one wait for the device."""
    tensors = [entry for entry in entries if isinstance(entry, torch.Tensor)]
    if not tensors:
        return [float(entry) for entry in entries]
    read = iter(torch.stack([tensor.double().reshape(()) for tensor in tensors]).tolist())
    return [next(read) if isinstance(entry, torch.Tensor) else float(entry) for entry in entries]
