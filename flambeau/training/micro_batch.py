"""How many samples a process takes through the model at a time: as told, or as many as fit into memory."""

from __future__ import annotations

import copy
import gc
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flambeau.config.sections import TrainerSettings
from flambeau.data import Batch
from flambeau.errors import FlambeauError, UsageError
from flambeau.optim import direct_step
from flambeau.runtime.world import World
from flambeau.training.rehearsal import Kept, forward_and_backward, out_of_memory, undone

if TYPE_CHECKING:
    from flambeau.training.trainer import Trainer


def check_micro_batch(settings: TrainerSettings, *, own_update: bool) -> None:
    """Refuse two answers to one question, and a question that nobody can answer.

    Args:
        own_update: the trainer's class has an `update` of its own, which takes batches as it likes.

    Raises:
        UsageError: both `micro_batch` and `accumulate` are given, or `auto` where `update` is not the engine's or no
            process can call the model by itself.
    """
    if settings.micro_batch == "auto" and own_update:
        raise UsageError(
            "trainer.micro_batch: auto needs the engine's own update, and this trainer has another",
            remedy="give trainer.accumulate, or no micro_batch",
        )
    if settings.micro_batch == "auto" and settings.fsdp is not None:
        raise UsageError(
            "trainer.micro_batch: auto is found by each process alone, and a model in shards needs all of them",
            remedy="give trainer.micro_batch a number",
        )
    if settings.micro_batch is not None and settings.accumulate > 1:
        raise UsageError(
            f"trainer: micro_batch is {settings.micro_batch} and accumulate is {settings.accumulate}",
            remedy="give one: accumulate is the number of micro-batches, micro_batch their size",
        )


def find_micro_batch(trainer: Trainer, batch: Batch, world: World) -> int:
    """The most samples at a time that fit into the memory of every process: the share of a batch, or a half, quarter...

    Each process tries by itself, on the model without collectives, and only then do they agree; so none waits for one
    that has run out. In a trial lies in memory what a step holds besides: the optimizer's state, and the gradients
    where there are several parts. Everything is undone as after a dry batch. On the CPU, memory runs out with an error
    only where a limit says so (`ulimit -v`); without one, Linux ends the process.

    Args:
        batch: this process's share of the first global batch.

    Raises:
        UsageError: not one sample fits.
        FlambeauError: another process failed in its trial.
        Exception: what the model or the criterion raised, other than for want of memory.
    """
    size, failure, want = 0, None, ""
    try:
        size, want = _largest(trainer, batch)
    except Exception as error:  # the others wait to hear of it
        error.add_note(f"this was a trial of trainer.micro_batch before step {trainer.state.step + 1}: {batch}")
        failure = error
    answers = world.gather([size, want, None if failure is None else f"{type(failure).__name__}: {failure}"])
    if failure is not None:
        raise failure
    for rank, (_, _, message) in enumerate(answers):
        if message is not None:
            raise FlambeauError(f"process {rank} failed in the trial of trainer.micro_batch: {message}")
    for rank, (found, want, _) in enumerate(answers):
        if not found:
            raise UsageError(
                f"not even one sample fits into memory{f' of process {rank}' if world.size > 1 else ''}: {want}",
                remedy="take a smaller model or smaller samples, a precision of 16 bits, or more memory",
            )
    chosen: int = min(found for found, _, _ in answers)
    parts = -(-_largest_share(trainer) // chosen)
    where = " in each process" if world.size > 1 else ""
    trainer.recorder.say(f"micro-batches of {chosen} samples fit into memory: {parts} a step{where}")
    return chosen


def _largest_share(trainer: Trainer) -> int:
    """Samples of a whole global batch that the process with most of them gets."""
    return -(-trainer.batch_size // trainer.world.size)


def _largest(trainer: Trainer, batch: Batch) -> tuple[int, str]:
    """The samples of the largest part that fits, 0 if none does, and what was wanted when memory ran out last."""
    parts, want = 1, ""
    largest = _largest_share(trainer)
    while True:
        size = -(-largest // parts)
        failure = _trial(trainer, batch, size, several=parts > 1 or trainer.world.size > 1)
        if failure is None:
            return size, want
        want = failure
        if parts >= largest:
            return 0, want
        parts = min(2 * parts, largest)


def _trial(trainer: Trainer, batch: Batch, size: int, *, several: bool) -> str | None:
    """Take `size` samples through the model, and a sixteenth of them to spare; what memory was wanted if it ran out.

    Args:
        several: gradients lie in memory before the forward pass, those of other parts or the buckets of an exchange.
    """
    cuda = trainer.device.type == "cuda"
    try:
        with undone(trainer) as kept:
            trainer.forward = trainer.model  # compiled code would be made anew for each size
            for _ in range(2):  # what fits once may not fit into the pieces that the first time left
                reserved = _reserve(trainer, kept, gradients=several)
                forward_and_backward(trainer, _repeated(batch, size + size // 16))
                del reserved
                kept.clear_gradients()
        return None
    except Exception as error:
        if not out_of_memory(error):
            raise
        return str(error).strip().split("\n")[0] or type(error).__name__
    finally:
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(trainer.device)


def _repeated(batch: Batch, size: int) -> Batch:
    """A batch of `size` rows of another, which may have fewer: the run may begin with the last batch of an epoch."""
    rows = np.arange(size) % max(batch.size, 1)
    ids = batch.ids[rows] if batch.size else batch.ids
    return Batch(_rows(batch.inputs, rows), _rows(batch.targets, rows), ids, size)


def _rows(data: Any, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Any:
    if isinstance(data, torch.Tensor):
        return data[torch.from_numpy(rows).to(data.device)]
    if isinstance(data, list):
        return [data[row] for row in rows]
    if isinstance(data, dict):
        return {key: _rows(value, rows) for key, value in data.items()}
    return data


def _reserve(trainer: Trainer, kept: Kept, *, gradients: bool) -> list[torch.Tensor]:
    """Take the memory that a step holds while it is in the forward pass, before the run itself has taken it."""
    if gradients:
        for group in trainer.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
    if trainer.optimizer.state:  # a run that goes on holds it already
        return []
    trained = sum(p.nbytes for group in trainer.optimizer.param_groups for p in group["params"] if p.requires_grad)
    wanted = int(trained * state_per_weight(trainer.optimizer))
    if trainer.device.type == "cpu":
        wanted = max(wanted - kept.host_bytes, 0)  # what the trial itself keeps will be free then
    return [torch.empty(wanted, dtype=torch.uint8, device=trainer.device)]


def state_per_weight(optimizer: torch.optim.Optimizer) -> float:
    """Bytes of state that an optimizer keeps for each byte of weights: 2 for Adam, 0 for plain SGD.

    Measured by a step of a copy of the optimizer on a small weight; 2 if that cannot be done.
    """
    weight = torch.nn.Parameter(torch.zeros(32, 32))
    weight.grad = torch.ones_like(weight)
    try:
        trial = copy.copy(optimizer)
        trial.param_groups = [{**optimizer.param_groups[0], "params": [weight]}]
        trial.state = defaultdict(dict)
        direct_step(trial)()  # without the wrappers, which import the compiler
        state = trial.state[weight].values()
    except Exception:  # a closure that it wants, attributes of its own: then as for Adam, which most runs use
        return 2.0
    return sum(value.nbytes for value in state if isinstance(value, torch.Tensor) and value.numel() > 1) / weight.nbytes
