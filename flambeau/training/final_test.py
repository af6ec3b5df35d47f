"""The measurement on the test data, at the end of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flambeau.errors import UsageError
from flambeau.training import snapshot

if TYPE_CHECKING:
    from flambeau.training.trainer import Trainer


def test_best(trainer: Trainer) -> dict[str, float]:
    """Measure the best checkpoint (without a run folder: the model as it is) on the test data, and record it.

    Raises:
        UsageError: there is no test data.
    """
    if trainer.test_data is None:
        raise UsageError("there is no test data", remedy="set trainer.test_at_end to false")
    model = trainer.model
    if trainer.store is not None:
        trainer.store.wait()
        if (best := snapshot.chosen(trainer, trainer.store.best)) is not None:
            model = snapshot.model_of(trainer, best)
    scores = {f"test/{name}": value for name, value in trainer.evaluate(trainer.test_data, model=model).items()}
    trainer.recorder.scalars({"epoch": trainer.epoch, **scores}, trainer.state.step)
    trainer.recorder.scores(trainer.state, trainer.epoch, scores, better=False)
    return scores
