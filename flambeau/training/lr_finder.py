"""A sweep of learning rates on the training data: which rates are too small, good, and too large."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from flambeau.config import Config
from flambeau.errors import FlambeauError, UsageError
from flambeau.optim import Schedule
from flambeau.optim.lr_curve import LrCurve, Runaway
from flambeau.training.build import build_trainer
from flambeau.training.callback import Callback, Hooks
from flambeau.training.guard import NonFiniteError
from flambeau.training.trainer import Trainer

FEWEST = 10
"""Steps before the loss runs away of which a curve can be made."""


class Sweep(Schedule):
    """Factors that grow exponentially, from `first` at step 0 to `last` at the last step."""

    def __init__(self, *, total_steps: int, first: float, last: float) -> None:
        super().__init__(total_steps=total_steps)
        self.first, self.last = first, last

    def factor(self, step: int, steps: int) -> float:
        return float(self.first * (self.last / self.first) ** (step / max(steps - 1, 1)))


class _RanAwayError(FlambeauError):
    """Ends a sweep."""


class _Watch(Callback):
    """Keeps the rate and the loss of each step, and ends the sweep when the loss has run away."""

    def __init__(self, rate: Callable[[int], float]) -> None:
        self._rate = rate
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.diverged = False
        self._ran_away = Runaway()

    def on_log(self, trainer: Trainer, record: Mapping[str, float]) -> None:
        name = next((key for key in record if f"{key}/".startswith("train/loss/")), None)
        if name is None:
            raise UsageError("the trainer records no train/loss, and without one no rate can be judged")
        self.rates.append(self._rate(trainer.state.step - 1))
        self.losses.append(record[name])
        self.diverged = self._ran_away(record[name])
        if self.diverged:
            raise _RanAwayError("the loss ran away")


def find_learning_rate(
    config: Config, *, device: str = "auto", first: float = 1e-6, last: float = 10.0, steps: int = 200
) -> LrCurve:
    """Train the configured model with a rate that grows each step, until the loss runs away.

    The same data, loss, precision, clipping and optimizer as in training; groups keep the ratio of their rate to the
    optimizer's. Nothing is written, nothing is validated, no callback or tracker is called. A function of the
    configuration and its seed.

    Args:
        first, last: the rates of the first and of the last step.
        steps: optimizer steps of the sweep.

    Raises:
        UsageError: the optimizer has no rate above 0, or the loss runs away at once.
    """
    trainer = build_trainer(_of_the_sweep(config, steps), device=device)
    watch = _Watch(Sweep(total_steps=steps, first=first, last=last))
    trainer.callbacks = {"find-lr": watch}
    trainer.hooks = Hooks(trainer.callbacks)
    trainer.val_data = trainer.test_data = None
    for stepper in trainer.steppers.values():
        groups = stepper.optimizer.param_groups
        main = next((group for group in groups if "name" not in group), groups[0])["initial_lr"]
        if not main > 0:
            raise UsageError(f"optimizer.lr is {main:g}: groups have no ratio to it", remedy="give a number above 0")
        stepper.schedule = Sweep(total_steps=steps, first=first / main, last=last / main)
    try:
        trainer.fit()
    except _RanAwayError:
        pass
    except NonFiniteError:
        watch.diverged = True
        if not watch.losses:
            raise
    if len(watch.losses) < min(FEWEST, steps):
        raise UsageError(
            f"the loss ran away within {len(watch.losses)} steps, at a rate of {watch.rates[-1]:.3g}",
            remedy="begin with a smaller rate: --from 1e-9",
        )
    return LrCurve(watch.rates, watch.losses, watch.diverged)


def _of_the_sweep(config: Config, steps: int) -> Config:
    """The configuration with what a sweep is without."""
    values: dict[str, Any] = copy.deepcopy(config.values)
    values["callbacks"], values["tracking"] = {}, {}
    values["scheduler"] = {"name": "constant"}
    for section in ("weight_decay_scheduler", "schedulers"):
        values.pop(section, None)
    for optimizer in (values.get("optimizer"), *(values.get("optimizers") or {}).values()):
        for key in ("lr_reference_batch", "lr_scaling"):  # rates of the sweep are those in use
            (optimizer or {}).pop(key, None)
    absent = ("epochs", "validate_every_epochs", "validate_every_steps", "stop_after_epochs", "early_stopping", "ema")
    values["trainer"] |= dict.fromkeys([*absent, "monitor", "monitor_mode", "debug", "profile", "max_skips"])
    values["trainer"] |= {"steps": steps, "log_every": 1, "test_at_end": False, "nan_policy": "stop"}
    return replace(config, values=values)
