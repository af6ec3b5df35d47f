"""Do something every so often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from annotated_types import Ge

from flambeau.errors import UsageError
from flambeau.registry import Function, load_function, register
from flambeau.training.callback import Callback
from flambeau.training.trainer import Trainer


@register.callback("every")
class Every(Callback):
    """Call a function of the trainer every n steps, epochs, samples or validations.

    It is called in every process, after the same steps; `trainer.world.is_main` is true in one of them. When it is due
    follows from the position of the run, so a resumed run calls it after the same steps as one that never stopped.

    Args:
        call: the function, or its import path; it gets the trainer.
        steps: optimizer steps between two calls.
        epochs: epochs between two calls.
        samples: training samples between two calls: it is called after the step that completes a multiple of them.
        validations: validations between two calls.

    Raises:
        UsageError: not exactly one of the four is given, or the function cannot be had.
    """

    def __init__(
        self,
        call: Function,
        *,
        steps: Annotated[int, Ge(1)] | None = None,
        epochs: Annotated[int, Ge(1)] | None = None,
        samples: Annotated[int, Ge(1)] | None = None,
        validations: Annotated[int, Ge(1)] | None = None,
    ) -> None:
        units = {"steps": steps, "epochs": epochs, "samples": samples, "validations": validations}
        given = [unit for unit, number in units.items() if number is not None]
        if len(given) != 1:
            raise UsageError(
                f"callback every: give one of {', '.join(units)} ({', '.join(given) or 'none'} given)",
                remedy="for several rhythms, use it under several labels: `often: {name: every, ...}`",
            )
        self.steps, self.epochs, self.samples, self.validations = steps, epochs, samples, validations
        self._call = load_function(call, "callback every: call")
        self._validations = 0

    def on_setup(self, trainer: Trainer) -> None:
        """Refuse a rhythm that this run does not have: it would never be called."""
        if self.epochs is not None and trainer.steps_per_epoch is None:
            raise UsageError(
                "callback every: epochs: the length of the training data is not known",
                remedy="set trainer.steps_per_epoch, or count in steps",
            )
        if self.validations is not None and trainer.val_data is None:
            raise UsageError("callback every: validations: there is no validation data", remedy="count in steps")

    def on_step_end(self, trainer: Trainer) -> None:
        if self.steps is not None and trainer.state.step % self.steps == 0:
            self._call(trainer)
        if self.samples is not None and trainer.last_batch is not None:
            now = trainer.state.samples
            if now // self.samples > (now - trainer.last_batch.global_size) // self.samples:
                self._call(trainer)

    def on_epoch_end(self, trainer: Trainer) -> None:
        if self.epochs is not None and trainer.epoch % self.epochs == 0:
            self._call(trainer)

    def on_validation_end(self, trainer: Trainer, scores: Mapping[str, float]) -> None:
        self._validations += 1
        if self.validations is not None and self._validations % self.validations == 0:
            self._call(trainer)

    def state_dict(self) -> dict[str, int]:
        return {"validations": self._validations}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._validations = state["validations"]
