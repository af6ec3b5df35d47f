"""When the periodic work of a run is due, counted in optimizer steps."""

from __future__ import annotations

from flambeau.config.sections import CheckpointSettings, TrainerSettings
from flambeau.errors import UsageError


class Due:
    """Answers, for a number of completed steps, whether logging, validation or a checkpoint is due.

    Args:
        steps_per_epoch: optimizer steps of an epoch; None where the length of the data is not known.
        total_steps: the planned end of the run, at which everything is due.

    Raises:
        UsageError: something is asked for a number of times an epoch, and how long an epoch is is not known.
    """

    def __init__(
        self,
        trainer: TrainerSettings,
        checkpoint: CheckpointSettings,
        steps_per_epoch: int | None,
        total_steps: int,
    ) -> None:
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.log_every = trainer.log_every
        self.validate_every = trainer.validate_every_steps or _in_steps(trainer.validate_every_epochs, steps_per_epoch)
        every = (checkpoint.every_steps, _in_steps(checkpoint.every_epochs, steps_per_epoch))
        self.checkpoint_every = tuple(steps for steps in every if steps is not None)
        self.log_times, self.validate_times = trainer.log_per_epoch, trainer.validate_per_epoch
        self.checkpoint_times = checkpoint.per_epoch
        times = {
            "trainer.log_per_epoch": self.log_times,
            "trainer.validate_per_epoch": self.validate_times,
            "checkpoint.per_epoch": self.checkpoint_times,
        }
        asked = [key for key, number in times.items() if number is not None]
        if asked and steps_per_epoch is None:
            raise UsageError(
                f"{', '.join(asked)}: the length of the training data is not known",
                remedy="set trainer.steps_per_epoch, or count in steps",
            )

    def log(self, step: int) -> bool:
        if self.log_times is not None:
            return step == self.total_steps or self._share_of_epoch(step, self.log_times)
        return step % self.log_every == 0 or step == self.total_steps

    def validation(self, step: int) -> bool:
        if self.validate_times is not None:
            return step == self.total_steps or self._share_of_epoch(step, self.validate_times)
        return step == self.total_steps or (self.validate_every is not None and step % self.validate_every == 0)

    def checkpoint(self, step: int) -> bool:
        if self.checkpoint_times is not None and self._share_of_epoch(step, self.checkpoint_times):
            return True
        return step == self.total_steps or any(step % every == 0 for every in self.checkpoint_every)

    def _share_of_epoch(self, step: int, times: int) -> bool:
        """Whether step `step` completes one of the `times` parts that an epoch is divided into as evenly as can be.

        The last step of an epoch completes one; an epoch of fewer steps than parts has as many as it has steps.
        """
        steps = self.steps_per_epoch
        assert steps is not None
        place = (step - 1) % steps + 1
        return place * times // steps > (place - 1) * times // steps


def _in_steps(epochs: int | None, steps_per_epoch: int | None) -> int | None:
    return None if epochs is None or steps_per_epoch is None else epochs * steps_per_epoch
