"""Modules that train by turns: some for a while, then others, and so on from the first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from flambeau.config.sections import AlternateSettings, TrainerSettings
from flambeau.errors import UsageError
from flambeau.optim import Schedule
from flambeau.training.freeze import find_modules
from flambeau.training.plan import Scheduler, make_schedule

if TYPE_CHECKING:
    from flambeau.training.trainer import Trainer


class Alternation:
    """Whose turn it is at each update: a pure function of the updates applied so far, so there is no state to save.

    The modules of the other turns rest: their parameters get no gradient, and they are in evaluation mode. What no turn
    names trains always.

    Raises:
        UsageError: a pattern matches no module, a turn has nothing to train, its length is not known, or a setting does
            not go together with turns.
    """

    def __init__(self, trainer: Trainer, settings: AlternateSettings) -> None:
        _check(trainer.settings)
        self.length = turn_length(settings, trainer.steps_per_epoch)
        self._trainer = trainer
        self._turn: int | None = None
        self._turns: list[set[nn.Module]] = []
        for number, patterns in enumerate(settings.modules):
            found = find_modules(trainer.model, patterns, f"alternate.modules.{number}")
            turn = {module for root in found for module in root.modules()} - trainer.freezing.for_good
            if not any(parameter.requires_grad for module in turn for parameter in module.parameters(recurse=False)):
                raise UsageError(f"trainer.alternate.modules.{number}: there is nothing to train in this turn")
            self._turns.append(turn)
        self._modules = set[nn.Module]().union(*self._turns)
        named = {p for module in self._modules for p in module.parameters(recurse=False)}
        self._parameters = {parameter for parameter in named if parameter.requires_grad}

    def begin_step(self) -> None:
        """Let those train whose turn it is."""
        turn = self._trainer.state.updates // self.length % len(self._turns)
        if turn != self._turn:
            self._turn = turn
            self._train(self._turns[turn])

    def end(self) -> None:
        """Let all train again."""
        if self._turn is not None:
            self._turn = None
            self._train(self._modules)

    def _train(self, modules: set[nn.Module]) -> None:
        learning = {parameter for module in modules for parameter in module.parameters(recurse=False)}
        for parameter in self._parameters:
            parameter.requires_grad_(parameter in learning)
        for module in self._modules:
            module.training = module in modules


class Restarted(Schedule):
    """A schedule that begins anew at each turn."""

    def __init__(self, schedule: Schedule, length: int) -> None:
        super().__init__(total_steps=schedule.total_steps)
        self._schedule = schedule
        self._length = length

    def __call__(self, step: int) -> float:
        return self._schedule(step % self._length)

    def weight_decay_factor(self, step: int) -> float | None:
        return self._schedule.weight_decay_factor(step % self._length)


def turn_length(settings: AlternateSettings, steps_per_epoch: int | None) -> int:
    """Optimizer steps of a turn.

    Raises:
        UsageError: it is given twice or not at all, or in epochs of data of unknown length.
    """
    if (settings.every_steps is None) == (settings.every_epochs is None):
        given = "neither" if settings.every_steps is None else "both"
        raise UsageError(f"trainer.alternate: give either every_epochs or every_steps ({given} given)")
    if settings.every_steps is not None:
        return settings.every_steps
    if steps_per_epoch is None:
        raise UsageError(
            "trainer.alternate.every_epochs: the length of the training data is not known",
            remedy="set trainer.alternate.every_steps",
        )
    return (settings.every_epochs or 1) * steps_per_epoch


def schedule_by_turns(
    scheduler: Scheduler | Mapping[str, Scheduler], settings: TrainerSettings, steps_per_epoch: int | None
) -> Scheduler | Mapping[str, Scheduler]:
    """`scheduler`, or with `trainer.alternate.restart_schedule` what runs it from beginning to end in each turn."""
    if settings.alternate is None or not settings.alternate.restart_schedule:
        return scheduler
    length = turn_length(settings.alternate, steps_per_epoch)

    def restarted(own: Scheduler) -> Scheduler:
        return lambda total_steps: Restarted(make_schedule(own, length, steps_per_epoch), length)

    if isinstance(scheduler, Mapping):
        return {name: restarted(own) for name, own in scheduler.items()}
    return restarted(scheduler)


def _check(settings: TrainerSettings) -> None:
    for name, remedy in {
        "fsdp": "train whole copies (DDP)",
        "unfreeze": "leave it out: turns say when a module trains",
        "static_graph": "leave it out: other parameters learn in other steps",
    }.items():
        if getattr(settings, name):
            raise UsageError(f"trainer.{name} does not go with trainer.alternate", remedy=remedy)
