"""How long a run is, and the schedule over that length."""

from __future__ import annotations

from collections.abc import Callable

from flambeau.config.sections import TrainerSettings
from flambeau.errors import UsageError
from flambeau.optim import Constant, Schedule

DEBUG_BATCHES = {"one_batch": 1, "few_batches": 3}
"""Batches of training and of each evaluation in the shortened runs of `trainer.debug`."""

OVERFIT_STEPS = 200
"""Steps on the one batch of `debug: overfit_batch`, where the run is not shorter already."""


def plan_steps(settings: TrainerSettings, steps_per_epoch: int | None) -> int:
    """The optimizer steps of a run.

    Raises:
        UsageError: neither or both of `epochs` and `steps` are given, or `epochs` for data of unknown length.
    """
    if (settings.epochs is None) == (settings.steps is None):
        given = "neither" if settings.epochs is None else "both"
        raise UsageError(f"trainer: give either epochs or steps ({given} given)")
    if settings.steps is not None:
        total = settings.steps
    elif steps_per_epoch is None:
        raise UsageError("trainer.epochs: the length of the training data is not known", remedy="set trainer.steps")
    else:
        total = (settings.epochs or 0) * steps_per_epoch
    if settings.debug in DEBUG_BATCHES:
        return min(total, DEBUG_BATCHES[settings.debug])
    if settings.debug == "one_validation":
        return min(total, 1)
    if settings.debug == "one_epoch":
        return min(total, steps_per_epoch) if steps_per_epoch is not None else total
    if settings.debug == "overfit_batch":
        return min(total, OVERFIT_STEPS)
    return total


def check_splits(settings: TrainerSettings, *, val_data: object, test_data: object) -> None:
    """Say before the run, not at its end, that a setting needs data that are not there.

    Raises:
        UsageError: early stopping or a monitored score without validation data, a test without test data.
    """
    for name in ("early_stopping", "monitor"):
        if getattr(settings, name) is not None and val_data is None:
            raise UsageError(f"trainer.{name}: there is no validation data", remedy=f"give some, or leave {name} out")
    if settings.test_at_end and test_data is None:
        raise UsageError(
            "trainer.test_at_end: there is no test data", remedy="give some, or set trainer.test_at_end to false"
        )


def make_schedule(scheduler: Schedule | Callable[..., Schedule] | None, total_steps: int) -> Schedule:
    """The schedule of a run of `total_steps`: as given, or made for this length."""
    if scheduler is None:
        return Constant(total_steps=total_steps)
    return scheduler if isinstance(scheduler, Schedule) else scheduler(total_steps=total_steps)


def describe_replanning(
    scheduler: Schedule | Callable[..., Schedule] | None, old_total: int, new_total: int, step: int
) -> str | None:
    """What another length does to the schedule of a run that is at `step`; None if the steps so far keep theirs."""
    old, new = make_schedule(scheduler, old_total), make_schedule(scheduler, new_total)
    shorter = min(old_total, new_total)
    if all(old(probe) == new(probe) for probe in range(0, shorter, max(1, shorter // 1000))):
        return None
    return (
        f"the {type(new).__name__} schedule was planned over {old_total} steps; over {new_total} it is planned anew: "
        f"at step {step} the factor of the rate goes from {old(max(step - 1, 0)):.4g} to {new(step):.4g}"
    )
