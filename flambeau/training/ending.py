"""How a run ends: at its planned end or before, by an error, and what is let go of in any case."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flambeau.errors import CheckpointError
from flambeau.training.memory_report import explain_out_of_memory

if TYPE_CHECKING:
    from flambeau.training.trainer import Trainer


def conclude(trainer: Trainer) -> None:
    """Log, validate, save and test what the last step has left to do.

    Raises:
        CheckpointError: the last checkpoint could not be saved.
    """
    state, store = trainer.state, trainer.store
    if trainer.team is not None:
        trainer.team.finish(state.step)
    if trainer.preemption is None:
        if any(trainer.world.gather(bool(trainer.train_means))):
            trainer.log()
        if state.validated_step != state.step:
            trainer.validate()
        for hook in trainer.hooks.fit_end:
            hook(trainer)
    if trainer.world.broadcast(trainer.saved_step != state.step):  # rank 0 alone knows of a save that failed
        trainer.save()
    if trainer.preemption is None and trainer.settings.test_at_end:
        trainer.test()
    if store is not None:
        store.wait()
        if trainer.saved_step != state.step:
            raise CheckpointError(f"the last checkpoint, of step {state.step}, could not be saved")
    trainer.recorder.end(state, preemption=trainer.preemption, stop_reason=trainer.stop_reason)
    for hook in trainer.hooks.exit:
        hook(trainer, "preempted" if trainer.preemption else "finished")


def fail(trainer: Trainer, error: BaseException) -> None:
    """Tell everybody that an exception is leaving the loop."""
    explain_out_of_memory(trainer, error)
    for hook in trainer.hooks.error:
        hook(trainer, error)
    trainer.recorder.fail(trainer.state, error)
    for hook in trainer.hooks.exit:
        hook(trainer, "failed")
