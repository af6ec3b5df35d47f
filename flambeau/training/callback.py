"""Callbacks: small classes that watch a run or react to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from flambeau.training.trainer import Trainer

Outcome = Literal["finished", "failed", "preempted"]
"""How a run, or this part of it, came to its end."""


class Callback:
    """Base of callbacks: override the hooks you need; the others cost nothing.

    What changes the meaning of a run (accumulation, averaging, early stopping, preemption) stands in the loop
    itself. A callback with state of its own gives it in `state_dict`; it is then in every checkpoint.
    """

    def on_setup(self, trainer: Trainer) -> None:
        """Once the trainer is made, before there is a run: refuse here, with a `UsageError`, what cannot work."""

    def on_fit_start(self, trainer: Trainer) -> None:
        """Before the first step, after a checkpoint has been loaded."""

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Before the first step of each epoch."""

    def on_gradients(self, trainer: Trainer) -> None:
        """When the gradients of a step are whole, unscaled and clipped, before the optimizer uses them."""

    def on_step_end(self, trainer: Trainer) -> None:
        """After each optimizer step. Reading a tensor's value here makes the host wait for the device."""

    def on_log(self, trainer: Trainer, record: Mapping[str, float]) -> None:
        """After the training record of the last `log_every` steps was written."""

    def on_validation_start(self, trainer: Trainer) -> None:
        """Before each validation."""

    def on_validation_end(self, trainer: Trainer, scores: Mapping[str, float]) -> None:
        """After each validation."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        """After the last step of each epoch, and after its validation."""

    def on_checkpoint(self, trainer: Trainer) -> None:
        """Before the state of the run is copied for a checkpoint."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last step of a run that came to its end."""

    def on_error(self, trainer: Trainer, error: BaseException) -> None:
        """When an exception leaves the loop; it goes on to the caller afterwards."""

    def on_exit(self, trainer: Trainer, outcome: Outcome) -> None:
        """The last of all, however the run ended: everything is saved, and the status is written.

        Called from another thread, with a second to act, in a process that is ended because another one failed.
        """

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart: plain data and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""


class Hooks:
    """The hooks that some callback really overrides, looked up once before the loop."""

    def __init__(self, callbacks: Mapping[str, Callback]) -> None:
        self.callbacks = callbacks
        self.setup = self._find("on_setup")
        self.fit_start = self._find("on_fit_start")
        self.epoch_start = self._find("on_epoch_start")
        self.gradients = self._find("on_gradients")
        self.step_end = self._find("on_step_end")
        self.log = self._find("on_log")
        self.validation_start = self._find("on_validation_start")
        self.validation_end = self._find("on_validation_end")
        self.epoch_end = self._find("on_epoch_end")
        self.checkpoint = self._find("on_checkpoint")
        self.fit_end = self._find("on_fit_end")
        self.error = self._find("on_error")
        self.exit = self._find("on_exit")

    def _find(self, name: str) -> tuple[Callable[..., None], ...]:
        default = getattr(Callback, name)
        return tuple(
            getattr(callback, name)
            for callback in self.callbacks.values()
            if name in getattr(callback, "__dict__", ()) or getattr(type(callback), name, default) is not default
        )

    def begin_epoch(self, trainer: Trainer) -> None:
        """Before a step: call the hooks of the epoch's start if it is the first of one.

        Not at the end of the epoch before: what a callback did there would be in that epoch's checkpoint, and be done
        again by a run that resumes from it.
        """
        steps = trainer.steps_per_epoch
        if steps and trainer.state.step % steps == 0:
            for hook in self.epoch_start:
                hook(trainer)

    def end_step(self, trainer: Trainer) -> None:
        """After a step: call the hooks of its end, and of the epoch's end if it was the last of one."""
        for hook in self.step_end:
            hook(trainer)
        steps = trainer.steps_per_epoch
        if steps and trainer.state.step % steps == 0:
            for hook in self.epoch_end:
                hook(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {label: callback.state_dict() for label, callback in self.callbacks.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """States of callbacks that are gone are left aside; new callbacks begin fresh."""
        for label, callback in self.callbacks.items():
            if label in state:
                callback.load_state_dict(state[label])


def label_callbacks(callbacks: Mapping[str, Callback] | Iterable[Callback]) -> dict[str, Callback]:
    """A name for each callback: its label, or its class with a number where two are of one class."""
    if isinstance(callbacks, Mapping):
        return dict(callbacks)
    labelled: dict[str, Callback] = {}
    for callback in callbacks:
        base = type(callback).__name__
        label, number = base, 2
        while label in labelled:
            label, number = f"{base}-{number}", number + 1
        labelled[label] = callback
    return labelled
