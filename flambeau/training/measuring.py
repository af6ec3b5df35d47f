"""The measurements of a run: on the validation data now and then, and once on the test data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from flambeau.errors import UsageError
from flambeau.runtime.seeds import derive, isolated
from flambeau.training import snapshot
from flambeau.training.evaluation import evaluate
from flambeau.training.plan import DEBUG_BATCHES

if TYPE_CHECKING:
    from flambeau.training.trainer import Trainer


def measure(trainer: Trainer, data: Any, model: nn.Module | None, samples: int | None) -> dict[str, float]:
    """The loss and metrics of a model on some data; see `Trainer.evaluate`.

    Raises:
        UsageError: there is no data.
    """
    data = trainer.val_data if data is None else data
    if data is None:
        raise UsageError("there is no data to evaluate on", remedy="give val_data to the trainer, or data to evaluate")
    for metric in trainer.metrics.values():
        if hasattr(metric, "to"):
            metric.to(trainer.device)
    with isolated(derive(trainer.seed, "evaluation")):
        return evaluate(
            trainer.model if model is None else model,
            trainer.eval_batches(data) if samples is None else trainer.eval_batches(data, samples),
            trainer.evaluation_step,
            trainer.metrics,
            limit=DEBUG_BATCHES.get(trainer.settings.debug or ""),
            world=trainer.world,
        )


def validate(trainer: Trainer) -> dict[str, float]:
    """Measure the model, and its average if one is kept, on the validation data; judge the score, and record all.

    Raises:
        UsageError: the score that is monitored is not among those that validation gives.
    """
    state = trainer.state
    state.validated_step = state.step
    if trainer.val_data is None:
        return {}
    if trainer.replicas is not None:
        trainer.replicas.share_buffers()
    with trainer.recorder.paused("validation"):
        for hook in trainer.hooks.validation_start:
            hook(trainer)
        samples = trainer.validation_samples
        scores = {f"val/{name}": value for name, value in trainer.evaluate(samples=samples).items()}
        if trainer.ema is not None:
            averaged = trainer.evaluate(model=trainer.ema.model, samples=samples)
            scores |= {f"val/ema/{name}": value for name, value in averaged.items()}
        if trainer.monitor not in scores:
            raise UsageError(f"trainer.monitor is '{trainer.monitor}', and validation gives {', '.join(scores)}")
        early = trainer.settings.early_stopping
        better = state.judge(scores[trainer.monitor], trainer.mode, early.min_delta if early else 0.0)
        trainer.recorder.scalars({"epoch": trainer.epoch, **scores}, state.step)
        trainer.recorder.scores(state, trainer.epoch, scores, better=better)
        for hook in trainer.hooks.validation_end:
            hook(trainer, scores)
    return scores


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
