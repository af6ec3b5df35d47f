"""When the periodic work of a run is due, counted in optimizer steps."""

from __future__ import annotations

from flambeau.config.sections import CheckpointSettings, TrainerSettings


class Due:
    """Answers, for a number of completed steps, whether logging, validation or a checkpoint is due.

    Args:
        steps_per_epoch: optimizer steps of an epoch; None where the length of the data is not known.
        total_steps: the planned end of the run, at which everything is due.
    """

    def __init__(
        self,
        trainer: TrainerSettings,
        checkpoint: CheckpointSettings,
        steps_per_epoch: int | None,
        total_steps: int,
    ) -> None:
        self.total_steps = total_steps
        self.log_every = trainer.log_every
        self.validate_every = trainer.validate_every_steps or _in_steps(trainer.validate_every_epochs, steps_per_epoch)
        every = (checkpoint.every_steps, _in_steps(checkpoint.every_epochs, steps_per_epoch))
        self.checkpoint_every = tuple(steps for steps in every if steps is not None)

    def log(self, step: int) -> bool:
        return step % self.log_every == 0 or step == self.total_steps

    def validation(self, step: int) -> bool:
        return step == self.total_steps or (self.validate_every is not None and step % self.validate_every == 0)

    def checkpoint(self, step: int) -> bool:
        return step == self.total_steps or any(step % every == 0 for every in self.checkpoint_every)


def _in_steps(epochs: int | None, steps_per_epoch: int | None) -> int | None:
    return None if epochs is None or steps_per_epoch is None else epochs * steps_per_epoch
