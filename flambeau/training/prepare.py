"""What happens between the start of a run and its first step: a trial with the first batch, and the copies."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from flambeau.data import Batch
from flambeau.distributed.batch_norm import local_norms
from flambeau.distributed.by_hand import HandReplicas
from flambeau.distributed.replicas import Replicas, Shares
from flambeau.distributed.sharded_replicas import ShardedReplicas
from flambeau.distributed.sharding import is_sharded_model
from flambeau.runtime.seeds import derive, isolated
from flambeau.training.micro_batch import find_micro_batch
from flambeau.training.rehearsal import Rehearsal, grouped, rehearse
from flambeau.training.summary import describe_model, tell_summary

if TYPE_CHECKING:
    from flambeau.training.trainer import Trainer


def prepare(trainer: Trainer, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Find the micro-batch, rehearse a step, and connect the copies of the model, if there are several.

    Returns:
        `batches`, none of them lost.
    """
    if trainer.finished():
        return batches
    first = next(batches)
    settings, in_pieces = trainer.settings, is_sharded_model(trainer.model)
    if settings.fsdp is not None and settings.fsdp.param_dtype not in (None, settings.precision) and not in_pieces:
        told = f"one process shards nothing: trainer.fsdp.param_dtype is left out, and {settings.precision} used"
        trainer.recorder.warn(told)
    if settings.micro_batch == "auto":
        if trainer.accumulate_found is None:
            with trainer.freezing.lifted():
                trainer.accumulate_found = trainer.parts_of(find_micro_batch(trainer, first, trainer.world))
        trainer.accumulate = trainer.accumulate_found
    # A model in pieces cannot be called by one process for itself, and there are no copies of it to compare.
    found = _rehearse(trainer, first) if settings.dry_batch and not in_pieces else None
    tell_summary(trainer, found.summary if found is not None else None)
    if trainer.world.size > 1:
        trainer.replicas = _connect(trainer, found)
        trainer.forward = trainer.replicas.forward
        if settings.sync_batch_norm and (left := local_norms(trainer.model)):
            trainer.recorder.warn(f"batch norm over each process's own samples: {', '.join(left)} (of another class)")
        if trainer.team is not None and settings.check_replicas_every is not None and not in_pieces:
            changing = set(found.changed_buffers if found is not None else dict(trainer.model.named_buffers()))
            changing |= trainer.freezing.changing_buffers()
            kept = {name: tensor for name, tensor in trainer.model.named_buffers() if name not in changing}
            trainer.team.compare({**dict(trainer.model.named_parameters()), **kept}, settings.check_replicas_every)
    return chain([first], batches)


def thaw(trainer: Trainer, batch: Batch) -> None:
    """Train what was frozen until now, from this step on.

    The exchange of gradients is made anew for the parameters that now take part in it, just as a run makes it that is
    resumed here.

    Args:
        batch: the one of the step to come.
    """
    names = trainer.freezing.at(trainer.state.step)
    trainer.recorder.say(f"step {trainer.state.step + 1:>6}: trained from here on: {grouped(names)}")
    if trainer.replicas is None:
        return
    trainer.forward, trainer.replicas = trainer._plain_forward, None
    gc.collect()  # the exchange so far hangs on the parameters until it is gone
    found = _rehearse(trainer, batch) if trainer.settings.dry_batch else None
    trainer.replicas = _connect(trainer, found)
    trainer.forward = trainer.replicas.forward


def _rehearse(trainer: Trainer, first: Batch) -> Rehearsal:
    from flambeau.training.trainer import Trainer

    plain = type(trainer).update is Trainer.update
    look = partial(describe_model, trainer, first)
    val = None
    if trainer.val_data is not None:
        with isolated(derive(trainer.seed, "evaluation")):
            val = next(trainer.eval_batches(trainer.val_data, trainer.validation_samples), None)
    found = rehearse(trainer, first.split(trainer.parts(first))[0] if plain else None, val, look=look)
    # A buffer may change with some samples only, and all processes must treat it alike.
    every = trainer.world.gather(found.changed_buffers)
    return replace(found, changed_buffers={name: kind for changed in every for name, kind in changed.items()})


def _connect(trainer: Trainer, found: Rehearsal | None) -> Shares:
    """The exchange of gradients; buffers are shared in every step only where a forward pass may read what it wrote."""
    if is_sharded_model(trainer.model):
        return ShardedReplicas(
            trainer.model,
            world=trainer.world,
            device=trainer.device,
            parameters=trainer.with_gradient,
            sums=trainer.sums_losses,
        )
    buffers = dict(trainer.model.named_buffers())
    changed = found.changed_buffers if found is not None else dict.fromkeys(buffers, "other")
    common: dict[str, Any] = {
        "world": trainer.world,
        "device": trainer.device,
        "parameters": trainer.with_gradient,
        "sums": trainer.sums_losses,
        "broadcast_buffers": "other" in changed.values(),
        "changing": [buffers[name] for name in changed],
    }
    if trainer.named is not None or trainer.alternation is not None:
        return HandReplicas(trainer.model, trainer.forward, **common)
    return Replicas(trainer.model, trainer.forward, static_graph=trainer.settings.static_graph, **common)
