"""Everything of a run that moves: what a checkpoint holds, and how a trainer takes it back."""

from __future__ import annotations

import copy
import random
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from flambeau.checkpoint import Checkpoint
from flambeau.errors import CheckpointError
from flambeau.training.plan import describe_replanning

if TYPE_CHECKING:
    from flambeau.training.trainer import Trainer

HYPERPARAMETERS = ("initial_lr", "weight_decay", "betas", "momentum", "dampening", "nesterov", "eps", "alpha")
"""Values of an optimizer's groups that the configuration decides, not the checkpoint."""


def take(trainer: Trainer) -> dict[str, Any]:
    """The state of a run after a step. Torch's generators are not in it: a step seeds them by its number."""
    scaler = trainer.precision.scaler
    return {
        "model": trainer.model.state_dict(),
        "ema": trainer.ema.model.state_dict() if trainer.ema else None,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler else None,
        "train": trainer.state.state_dict(),
        "planned": {"steps": trainer.total_steps, "stop": trainer.stop_reason},
        "means": trainer.train_means.state_dict(),
        "callbacks": trainer.hooks.state_dict(),
        "random": {"python": random.getstate(), "numpy": np.random.get_state()},
        "data": trainer.feeder.state_dict(),
        "train_samples": _length(trainer),
        "record": trainer.recorder.position(),
    }


def restore(trainer: Trainer, checkpoint: Checkpoint) -> int:
    """Give a trainer, built as before, the state of a checkpoint.

    Returns:
        The length of the metrics record at that step.

    Raises:
        CheckpointError: the weights do not fit the model, or the training data has another length.
    """
    state = checkpoint.load()
    if state["train_samples"] != _length(trainer):
        raise CheckpointError(
            f"the training data had {state['train_samples']} samples at step {checkpoint.step} and has "
            f"{_length(trainer)} now: the run would go on with other batches",
            remedy="bring back the data as it was, or begin a new run",
        )
    _load_weights(trainer.model, state["model"], checkpoint)
    if trainer.ema is not None:
        _load_weights(trainer.ema.model, state["ema"] if state["ema"] is not None else state["model"], checkpoint)
    configured = [
        {key: group[key] for key in HYPERPARAMETERS if key in group} for group in trainer.optimizer.param_groups
    ]
    try:
        trainer.optimizer.load_state_dict(state["optimizer"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"the optimizer's state in {checkpoint.path} does not fit the configured optimizer: {error}"
        ) from error
    for group, values in zip(trainer.optimizer.param_groups, configured, strict=True):
        group.update(values)
    if trainer.precision.scaler is not None and state["scaler"] is not None:
        trainer.precision.scaler.load_state_dict(state["scaler"])
    trainer.state.load_state_dict(state["train"])
    planned = state["planned"]["steps"]
    if planned == trainer.total_steps:
        trainer.stop_reason = state["planned"]["stop"]
    elif change := describe_replanning(trainer.scheduler, planned, trainer.total_steps, checkpoint.step):
        trainer.recorder.warn(change)
    trainer.train_means.load_state_dict(state["means"])
    trainer.hooks.load_state_dict(state["callbacks"])
    trainer.feeder.load_state_dict(state["data"])
    random.setstate(state["random"]["python"])
    np.random.set_state(state["random"]["numpy"])
    return int(state["record"])


def model_of(trainer: Trainer, checkpoint: Checkpoint) -> nn.Module:
    """A copy of the model with a checkpoint's weights, as `load_weights` chooses them."""
    model = copy.deepcopy(trainer.model)
    _load_weights(model, _judged_weights(trainer, checkpoint), checkpoint)
    return model


def load_weights(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Give the model a checkpoint's weights: the averaged ones where they are what the monitored score is of."""
    _load_weights(trainer.model, _judged_weights(trainer, checkpoint), checkpoint)


def _length(trainer: Trainer) -> int | None:
    data = trainer.train_data
    return len(data) if hasattr(data, "__len__") else None


def _judged_weights(trainer: Trainer, checkpoint: Checkpoint) -> dict[str, Any]:
    part = "ema" if trainer.ema is not None and trainer.monitor.startswith("val/ema/") else "model"
    weights: dict[str, Any] = checkpoint.load(part)[part]
    return weights


def _load_weights(model: nn.Module, weights: dict[str, Any], checkpoint: Checkpoint) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {checkpoint.path} do not fit the model: {error}") from error
