"""One optimizer, and what it takes to make a step with it."""

from __future__ import annotations

import torch

from flambeau.optim import Schedule, direct_step


class Stepper:
    """An optimizer, the parameters that it has, and its schedule.

    Args:
        optimizer: its groups' learning rates at the start are what the schedule's factor is of.
        schedule: of the number of the update, from 0.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Schedule) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
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
