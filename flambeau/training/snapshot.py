"""Everything of a run that moves: what a checkpoint holds, and how a trainer takes it back."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from flambeau.checkpoint import Checkpoint, CheckpointStore
from flambeau.checkpoint.reading import Like
from flambeau.checkpoint.sharded_store import ShardedStore
from flambeau.checkpoint.tensor_classes import unwrapped, wrapped
from flambeau.distributed.sharding import layout_of, twin_of
from flambeau.errors import CheckpointError
from flambeau.training.data_record import compare_record
from flambeau.training.plan import describe_replanning
from flambeau.training.running_means import merge_states

if TYPE_CHECKING:
    from flambeau.training.trainer import Trainer

HYPERPARAMETERS = (
    "initial_lr",
    "initial_weight_decay",
    "weight_decay",
    "betas",
    "momentum",
    "dampening",
    "nesterov",
    "eps",
    "alpha",
)
"""Values of an optimizer's groups that the configuration decides, not the checkpoint."""


def take(trainer: Trainer) -> dict[str, Any]:
    """The state of a run after a step. Torch's generators are not in it: a step seeds them by its number."""
    return {
        "model": trainer.model.state_dict(),
        "ema": trainer.ema.model.state_dict() if trainer.ema else None,
        **unwrapped(_optimizers(trainer)),
        "train": trainer.state.state_dict(),
        "planned": {"steps": trainer.planned_steps, "end": trainer.total_steps, "stop": trainer.stop_reason},
        "parts": {"found": trainer.accumulate_found, "ranks": trainer.world.size},
        "means": trainer.world.gather(trainer.train_means.state_dict()),
        "callbacks": trainer.hooks.state_dict(),
        "random": {"python": random.getstate(), "numpy": np.random.get_state()},
        "data": trainer.feeder.state_dict(),
        "fingerprints": trainer.data_record,
        "record": trainer.recorder.position(),
    }


def save(trainer: Trainer, store: CheckpointStore, *, flush: Sequence[Path]) -> None:
    """Copy the state of a run and have it written; `flush` are files that the checkpoint relies on."""
    validated = trainer.state.validated_step == trainer.state.step
    state = take(trainer)
    if trainer.world.is_main or isinstance(store, ShardedStore):
        score = trainer.recorder.last_scores.get(trainer.monitor) if validated else None
        store.save(trainer.state.step, state, score=score, flush=flush)


def restore(trainer: Trainer, checkpoint: Checkpoint) -> int:
    """Give a trainer, built as before, the state of a checkpoint.

    Returns:
        The length of the metrics record at that step.

    Raises:
        CheckpointError: the weights do not fit the model, or the data are not what they were.
    """
    state = checkpoint.load(like=_layout(trainer))
    if "fingerprints" in state:  # older checkpoints have none
        compare_record(trainer, state["fingerprints"], checkpoint.step)
    _load_weights(trainer.model, state["model"], checkpoint)
    if trainer.ema is not None:
        _load_weights(trainer.ema.model, state["ema"] if state["ema"] is not None else state["model"], checkpoint)
    _load_optimizers(trainer, state, checkpoint)
    trainer.state.load_state_dict(state["train"])
    planned = state["planned"]["steps"]
    if state["planned"].get("end", planned) == trainer.total_steps:
        trainer.stop_reason = state["planned"]["stop"]
    if planned != trainer.planned_steps and (change := replanning(trainer, planned, checkpoint.step)):
        trainer.recorder.warn(change)
    if state["parts"]["ranks"] == trainer.world.size:  # other parts would add up in another order
        trainer.accumulate_found = state["parts"]["found"]
    trainer.train_means.load_state_dict(_own_means(trainer, state["means"]))
    trainer.hooks.load_state_dict(state["callbacks"])
    trainer.feeder.load_state_dict(state["data"])
    random.setstate(state["random"]["python"])
    np.random.set_state(state["random"]["numpy"])
    return int(state["record"])


def replanning(trainer: Trainer, old_total: int, step: int) -> str | None:
    """What it does to the schedule that the run was planned over another number of steps; None if nothing."""
    for scheduler in (trainer.scheduler, trainer.weight_decay_scheduler):
        length = (old_total, trainer.planned_steps, step, trainer.steps_per_epoch)
        if change := describe_replanning(scheduler, *length):
            return change
    return None


def chosen(trainer: Trainer, find: Callable[[], Checkpoint | None]) -> Checkpoint | None:
    """The checkpoint that rank 0 finds and verifies (of a model in pieces: all together), in every process."""
    if trainer.world.size == 1 or isinstance(trainer.store, ShardedStore):
        return find()
    found = find() if trainer.world.is_main else None
    path = trainer.world.broadcast(str(found.path) if found is not None else None)
    return found if found is not None or path is None else Checkpoint.open(Path(path))


def model_of(trainer: Trainer, checkpoint: Checkpoint) -> nn.Module:
    """A copy of the model with a checkpoint's weights, as `load_weights` chooses them."""
    model = twin_of(trainer.model)
    _load_weights(model, _judged_weights(trainer, checkpoint), checkpoint)
    return model


def load_weights(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Give the model a checkpoint's weights: the averaged ones where they are what the monitored score is of."""
    _load_weights(trainer.model, _judged_weights(trainer, checkpoint), checkpoint)


def _optimizers(trainer: Trainer) -> dict[str, Any]:
    """What moves of the optimizer, or of each of several."""
    if trainer.named is not None:
        return {"optimizers": trainer.named.state_dict()}
    scaler = trainer.precision.scaler
    return {"optimizer": trainer.optimizer.state_dict(), "scaler": scaler.state_dict() if scaler else None}


def _load_optimizers(trainer: Trainer, state: dict[str, Any], checkpoint: Checkpoint) -> None:
    if trainer.named is None:
        if "optimizer" not in state:
            raise _other_optimizers(checkpoint, "several optimizers", "one")
        _load_optimizer(trainer.optimizer, state["optimizer"], checkpoint)
        if trainer.precision.scaler is not None and state["scaler"] is not None:
            trainer.precision.scaler.load_state_dict(state["scaler"])
        return
    of_each = state.get("optimizers", {})
    if of_each.keys() != trainer.optimizers.keys():
        found = f"the optimizers {', '.join(of_each)}" if of_each else "one optimizer"
        raise _other_optimizers(checkpoint, found, f"the optimizers {', '.join(trainer.optimizers)}")
    for name, optimizer in trainer.optimizers.items():
        _load_optimizer(optimizer, of_each[name]["optimizer"], checkpoint)
    trainer.named.load_counts(of_each)


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], checkpoint: Checkpoint) -> None:
    """The state of a checkpoint, and the settings of the configuration."""
    configured = [{key: group[key] for key in HYPERPARAMETERS if key in group} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(wrapped(state))
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"the optimizer's state in {checkpoint.path} does not fit the configured optimizer: {error}"
        ) from error
    for group, values in zip(optimizer.param_groups, configured, strict=True):
        group.update(values)


def _other_optimizers(checkpoint: Checkpoint, found: str, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.path} is of a run with {found}, and this trainer has {wanted}",
        remedy="give the optimizers that the run began with, or begin a new run",
    )


def _layout(trainer: Trainer) -> Like | None:
    """How a checkpoint's tensors are to lie here; several optimizers train whole copies only."""
    return layout_of(trainer.model, trainer.optimizer) if trainer.named is None else None


def _own_means(trainer: Trainer, of_ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """This process's part of the means in progress: its own, or, at another number of processes, rank 0's of all."""
    if len(of_ranks) == trainer.world.size:
        return of_ranks[trainer.world.rank]
    return merge_states(of_ranks) if trainer.world.is_main else {}


def _judged_weights(trainer: Trainer, checkpoint: Checkpoint) -> dict[str, Any]:
    part = "ema" if trainer.ema is not None and trainer.monitor.startswith("val/ema/") else "model"
    weights: dict[str, Any] = checkpoint.load(part, like=_layout(trainer))[part]
    return weights


def _load_weights(model: nn.Module, weights: dict[str, Any], checkpoint: Checkpoint) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {checkpoint.path} do not fit the model: {error}") from error
