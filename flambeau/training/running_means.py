"""Means over the steps since the last log line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch


class RunningMeans:
    """Weighted means of values that are noted at every step and read at each log line.

    Values and weights are kept as they come: Python numbers, or tensors on a device that nobody waits for until
    `take` reads them all at once.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[float | torch.Tensor]] = {}
        self._weights: dict[str, list[float | torch.Tensor]] = {}

    def add(self, name: str, value: float | torch.Tensor, weight: float | torch.Tensor) -> None:
        values = self._values.get(name)
        if values is None:
            values = self._values[name] = []
            self._weights[name] = []
        values.append(value.detach() if isinstance(value, torch.Tensor) else value)
        self._weights[name].append(weight)

    def take(self) -> tuple[dict[str, float], dict[str, int]]:
        """The means, and begin anew.

        Returns:
            The means by name, and for each name with a value that is not finite the position of the first such value.
        """
        means: dict[str, float] = {}
        bad: dict[str, int] = {}
        for name, entries in self._values.items():
            values, weights = _numbers(entries), _numbers(self._weights[name])
            # What has no weight (a part of a batch without any target) is a mean of nothing and may be NaN.
            counted = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight]
            total = sum(weights)
            means[name] = sum(value * weight for value, weight in counted) / total if total else math.nan
            first = next((at for at, (value, _) in enumerate(counted) if not math.isfinite(value)), None)
            if first is not None:
                bad[name] = first
        self._values.clear()
        self._weights.clear()
        return means, bad

    def __bool__(self) -> bool:
        return bool(self._values)

    def state_dict(self) -> dict[str, Any]:
        return {
            "values": {name: _numbers(values) for name, values in self._values.items()},
            "weights": {name: _numbers(weights) for name, weights in self._weights.items()},
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, list[float]]]) -> None:
        self._values = {name: list(values) for name, values in state["values"].items()}
        self._weights = {name: list(weights) for name, weights in state["weights"].items()}


def _numbers(entries: list[float | torch.Tensor]) -> list[float]:
    """Numbers of `entries`, with at most one wait for the device."""
    tensors = [entry for entry in entries if isinstance(entry, torch.Tensor)]
    if not tensors:
        return [float(entry) for entry in entries]
    read = iter(torch.stack([tensor.double().reshape(()) for tensor in tensors]).tolist())
    return [next(read) if isinstance(entry, torch.Tensor) else float(entry) for entry in entries]
