"""Trackers that remember."""

from __future__ import annotations

from collections.abc import Mapping

from flambeau import Tracker


class Numbers(Tracker):
    """Keeps the scalars that it is given."""

    def __init__(self) -> None:
        self.given: list[tuple[str, float, int]] = []

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        self.given += [(name, value, step) for name, value in values.items()]

    def of(self, name: str) -> dict[int, float]:
        """The values of a name by step."""
        return {step: value for own, value, step in self.given if own == name}
