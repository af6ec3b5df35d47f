"""One optimizer, and what it takes to make a step with it."""

from __future__ import annotations

from typing import Protocol

import torch

from flambeau.optim import Schedule, direct_step, learning_rates


class Counts(Protocol):
    """What is counted of an optimizer's updates."""

    skipped_in_row: int

    def skip(self) -> None:
        """Take note of an update that was left out."""


class Stepper:
    """An optimizer, the parameters that it has, and its schedule.

    Args:
        optimizer: its groups' learning rates at the start are what the schedule's factor is of.
        schedule: of the number of the update, from 0.
        counts: of its updates.
        scaler: of its losses, where gradients are of 16 bits.
        name: of several optimizers, what the updates call it by.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        *,
        counts: Counts,
        scaler: torch.amp.GradScaler | None = None,
        name: str | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
        self.scaler = scaler
        self.counts = counts
        self.name = name
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._step = direct_step(optimizer)

    def step(self, updates: int) -> None:
        """Set the scheduled learning rate and step, `updates` having been made before."""
        factor = self.schedule(updates)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self._step()

    def rates(self) -> dict[str, float]:
        """The learning rates of the last step, for the log."""
        return learning_rates(self.optimizer)

    def label(self, score: str) -> str:
        """A score's name in the record: of several optimizers, with this one's."""
        return score if self.name is None else f"{score}/{self.name}"
