"""One optimizer, and what it takes to make a step with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from flambeau.errors import UsageError
from flambeau.optim import Clipping, Schedule, direct_step, learning_rates, weight_decays


class Counts(Protocol):
    """What is counted of an optimizer's updates."""

    skipped_in_row: int

    def skip(self) -> None:
        """Take note of an update that was left out."""


class Stepper:
    """An optimizer, the parameters that it has, its schedules, and how its gradients are clipped.

    Args:
        optimizer: its groups' learning rates and weight decays at the start are what the schedules' factors are of.
        schedule: of the learning rate, by the number of the update, from 0; it may have one of the weight decay too.
        counts: of its updates.
        scaler: of its losses, where gradients are of 16 bits.
        name: of several optimizers, what the updates call it by.
        decay: schedule of the weight decay; default: it stays as it is.
        clipping: default: none.

    Raises:
        UsageError: two schedules of the weight decay, or one where no group has any.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        *,
        counts: Counts,
        scaler: torch.amp.GradScaler | None = None,
        name: str | None = None,
        decay: Schedule | None = None,
        clipping: Clipping | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
        self.scaler = scaler
        self.counts = counts
        self.name = name
        self.scale = 1.0
        """What the scheduled rates are multiplied by besides: `reduce_on_plateau` makes it smaller."""
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.clipping = (clipping or Clipping()).of(self.parameters)
        for group in optimizer.param_groups:
            rate = group["lr"]
            group.setdefault("initial_lr", rate.item() if isinstance(rate, torch.Tensor) else rate)
        # Some optimizers (torchao's, and torch's own if asked to) keep the rate in a tensor, which has to stay it.
        self._rate_is_tensor = any(isinstance(group["lr"], torch.Tensor) for group in optimizer.param_groups)
        self._decay = self._choose_decay(schedule, decay)
        self._step = direct_step(optimizer)

    def step(self, updates: int) -> None:
        """Set the scheduled learning rate and weight decay and step, `updates` having been made before."""
        groups = self.optimizer.param_groups
        factor = self.schedule(updates) * self.scale
        for group in groups:
            if self._rate_is_tensor and isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(group["initial_lr"] * factor)
            else:
                group["lr"] = group["initial_lr"] * factor
        if self._decay is not None and (factor_of_decay := self._decay(updates)) is not None:
            for group in groups:
                group["weight_decay"] = group["initial_weight_decay"] * factor_of_decay
        self._step()

    def rates(self) -> dict[str, float]:
        """What the last step was made with, for the log: learning rates, and weight decays where they are scheduled."""
        return learning_rates(self.optimizer) | (weight_decays(self.optimizer) if self._decay is not None else {})

    def _choose_decay(self, schedule: Schedule, decay: Schedule | None) -> Callable[[int], float | None] | None:
        own = schedule.weight_decay_factor if schedule.weight_decay_factor(0) is not None else None
        if own is not None and decay is not None:
            raise UsageError(
                f"the {type(schedule).__name__} schedule and weight_decay_scheduler both set the weight decay",
                remedy="leave out one of them",
            )
        chosen = decay or own
        if chosen is None:
            return None
        groups = self.optimizer.param_groups
        if not any(group.get("weight_decay") for group in groups):
            name = type(self.optimizer).__name__
            raise UsageError(
                f"the weight decay has a schedule, and the optimizer {name} has none",
                remedy="give optimizer.weight_decay, or leave out the schedule",
            )
        for group in groups:
            group.setdefault("initial_weight_decay", group["weight_decay"])
        return chosen

    def label(self, score: str) -> str:
        """A score's name in the record: of several optimizers, with this one's."""
        return score if self.name is None else f"{score}/{self.name}"
