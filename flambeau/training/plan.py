"""How long a run is, and the schedule over that length."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flambeau.config.sections import LoaderSettings, TrainerSettings
from flambeau.errors import UsageError
from flambeau.optim import Constant, Schedule, takes_epochs

DEBUG_BATCHES = {"one_batch": 1, "few_batches": 3}
"""Batches of training and of each evaluation in the shortened runs of `trainer.debug`."""

_LENGTH = "set trainer.steps, or say with trainer.steps_per_epoch how long an epoch is"

OVERFIT_STEPS = 200
"""Steps on the one batch of `debug: overfit_batch`, where the run is not shorter already."""


def global_batch(loader: LoaderSettings, ranks: int) -> int:
    """Samples per optimizer step over all processes."""
    return loader.batch_size_per_rank * ranks if loader.batch_size_per_rank else loader.batch_size


def plan_steps(settings: TrainerSettings, steps_per_epoch: int | None) -> int:
    """The optimizer steps of the whole run, over which its schedules are laid.

    Raises:
        UsageError: neither or both of `epochs` and `steps` are given, or `epochs` for data of unknown length.
    """
    if (settings.epochs is None) == (settings.steps is None):
        given = "neither" if settings.epochs is None else "both"
        raise UsageError(f"trainer: give either epochs or steps ({given} given)")
    if settings.steps is not None:
        return settings.steps
    if steps_per_epoch is None:
        raise UsageError("trainer.epochs: the length of the training data is not known", remedy=_LENGTH)
    return (settings.epochs or 0) * steps_per_epoch


def end_of_run(settings: TrainerSettings, planned_steps: int, steps_per_epoch: int | None) -> int:
    """The step at which a run ends: that of the whole run, or an earlier one that leaves the schedules as they are.

    Raises:
        UsageError: `stop_after_epochs` is more than the run has, or epochs have no known length.
    """
    end = planned_steps
    if (epochs := settings.stop_after_epochs) is not None:
        if steps_per_epoch is None:
            raise UsageError("trainer.stop_after_epochs: the length of the training data is not known", remedy=_LENGTH)
        if epochs * steps_per_epoch > planned_steps:
            raise UsageError(
                f"trainer.stop_after_epochs: {epochs} epochs are more than the run's {planned_steps:,} steps",
                remedy="stop earlier, or make the run longer",
            )
        end = epochs * steps_per_epoch
    if settings.debug in DEBUG_BATCHES:
        return min(end, DEBUG_BATCHES[settings.debug])
    if settings.debug == "one_validation":
        return min(end, 1)
    if settings.debug == "one_epoch":
        return min(end, steps_per_epoch) if steps_per_epoch is not None else end
    if settings.debug == "overfit_batch":
        return min(end, OVERFIT_STEPS)
    return end


def lengths_of_run(settings: TrainerSettings, steps_per_epoch: int | None) -> tuple[int, int]:
    """The steps that schedules are laid over, and the one that the run ends at."""
    planned = plan_steps(settings, steps_per_epoch)
    return planned, end_of_run(settings, planned, steps_per_epoch)


def validation_samples(settings: TrainerSettings, loader: LoaderSettings, batch_size: int) -> int | None:
    """The samples that a validation measures, the same at any number of processes; None for all.

    Args:
        batch_size: the global batch.
    """
    batches = settings.validate_batches
    return None if batches is None else batches * (loader.eval_batch_size or batch_size)


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


Scheduler = Schedule | Callable[..., Schedule] | None
"""A schedule, what makes one when called with `total_steps=` (and, where it takes it, `steps_per_epoch=`), or None for
a constant one."""


def scheduler_of(scheduler: Scheduler | Mapping[str, Scheduler], name: str) -> Scheduler:
    """The scheduler of one of several optimizers: its own, or the one of all."""
    return scheduler.get(name) if isinstance(scheduler, Mapping) else scheduler


def make_schedule(scheduler: Scheduler, total_steps: int, steps_per_epoch: int | None = None) -> Schedule:
    """The schedule of a run of `total_steps`: as given, or made for this length."""
    if scheduler is None:
        return Constant(total_steps=total_steps)
    if isinstance(scheduler, Schedule):
        return scheduler
    if takes_epochs(scheduler):
        return scheduler(total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    return scheduler(total_steps=total_steps)


def describe_replanning(
    scheduler: Scheduler | Mapping[str, Scheduler],
    old_total: int,
    new_total: int,
    step: int,
    steps_per_epoch: int | None = None,
) -> str | None:
    """What another length does to the schedule of a run that is at `step`; None if the steps so far keep theirs.

    Of several schedules, the first that changes is told of.
    """
    if isinstance(scheduler, Mapping):
        changes = (
            (name, describe_replanning(own, old_total, new_total, step, steps_per_epoch))
            for name, own in scheduler.items()
        )
        return next((f"{name}: {change}" for name, change in changes if change is not None), None)
    new = make_schedule(scheduler, new_total, steps_per_epoch)
    name = type(new).__name__
    try:
        old = make_schedule(scheduler, old_total, steps_per_epoch)
    except UsageError:  # its lengths add up to the new run, not to the old one
        return f"the {name} schedule fits {new_total} steps and not the {old_total} of the run so far: it is another"
    shorter = min(old_total, new_total)
    probes = range(0, shorter, max(1, shorter // 1000))
    if all(
        old(probe) == new(probe) and old.weight_decay_factor(probe) == new.weight_decay_factor(probe)
        for probe in probes
    ):
        return None
    return (
        f"the {name} schedule was planned over {old_total} steps; over {new_total} it is planned anew: "
        f"at step {step} the factor of the rate goes from {old(max(step - 1, 0)):.4g} to {new(step):.4g}"
    )
