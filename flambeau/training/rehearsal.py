"""The dry batch: one micro-batch of training and one batch of validation before the first step, and then undone.

Errors of shape, of type and of memory show here, in the first seconds, and not after an epoch. The model is called
by itself, without collectives, so that no process waits for another whatever goes wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from flambeau.data import Batch
from flambeau.data.batch import map_tensors
from flambeau.distributed.batch_norm import unsynced
from flambeau.errors import UsageError
from flambeau.runtime.seeds import derive, isolated
from flambeau.training.evaluation import evaluation_mode

if TYPE_CHECKING:
    from flambeau.training.trainer import Trainer


@dataclass(frozen=True)
class Rehearsal:
    """What a dry batch found out."""

    without_gradient: list[str] = field(default_factory=list)
    """Parameters of the model that want a gradient and got none."""
    summary: str | None = None
    """The table of the model, with shapes; of rank 0."""
    changed_buffers: dict[str, str] = field(default_factory=dict)
    """Buffers of the model that the training pass changed (without such a pass: all that there are), by name:
    `batch_norm` for running statistics, else `other`."""


def rehearse(
    trainer: Trainer, batch: Batch | None, val_batch: Batch | None, *, look: Callable[[], str | None] = lambda: None
) -> Rehearsal:
    """Take one batch through training and one through validation, and leave no trace of it.

    Put back are the parameters, buffers and attributes of every module that the trainer holds, gradients, running
    means, and the global random generators; the optimizer, the scaler and the average of the weights are not
    used. What a forward pass does besides (lists that it appends to, files that it writes) stays done.

    Args:
        batch: the largest micro-batch of the first step; None leaves training out: where `update` is not the
            trainer's own (two optimizers, several backward passes), nobody but itself can call its parts.
        val_batch: None leaves validation out.
        look: makes the table of the model; what it does to the model is undone with the rest.

    Raises:
        UsageError: with several processes, a parameter gets no gradient.
        Exception: what the model, the criterion or a metric raised, with a note that says when.
    """
    model = trainer.model
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        return Rehearsal()  # sizes of the model that the first batch decides cannot be undone
    silent: list[str] = []
    with undone(trainer) as kept:
        if batch is not None:
            with _noted(trainer, batch, "training"):
                forward_and_backward(trainer, _copied(batch))
            silent = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
            kept.clear_gradients()
        changed = kept.buffers(model, only_changed=batch is not None)
        if val_batch is not None:
            with _noted(trainer, val_batch, "validation"):
                _validate(trainer, val_batch)
        summary = look()
    if silent:
        _tell_unused(trainer, silent)
    return Rehearsal(silent, summary, changed)


def forward_and_backward(trainer: Trainer, batch: Batch) -> None:
    """The part of a step that takes memory: the loss of a batch and its gradients; within `undone`."""
    trainer.units(batch)
    with trainer.precision.autocast():
        loss = trainer.training_step(batch)
    loss.backward()  # type: ignore[no-untyped-call]


@torch.no_grad()
def _validate(trainer: Trainer, batch: Batch) -> None:
    batch = _copied(batch)
    with evaluation_mode(trainer.model):
        outputs, _, _ = trainer.evaluation_step(trainer.model, batch)
    for label, metric in trainer.metrics.items():
        if hasattr(metric, "to"):
            metric.to(trainer.device)
        metric.reset()
        metric.update(outputs, batch.targets)
        if trainer.world.size == 1:  # a metric may wait for other processes here
            try:
                metric.compute()
            except Exception as error:  # one batch may be too little: a class that is not in it, say
                what = f"{type(error).__name__}: {error}"
                trainer.recorder.warn(f"the metric '{label}' cannot be computed from one validation batch: {what}")
        metric.reset()


def _copied(batch: Batch) -> Batch:
    """A model may write into its input, which the run still needs."""
    return batch.replace(inputs=map_tensors(torch.clone, batch.inputs), targets=map_tensors(torch.clone, batch.targets))


def _tell_unused(trainer: Trainer, names: Sequence[str]) -> None:
    message = f"{len(names)} parameters get no gradient from the loss: {grouped(names)}"
    if trainer.world.size > 1 and not trainer.settings.static_graph:
        raise UsageError(
            f"{message}; with several processes, each parameter must get one in each step",
            remedy="use them in the loss, take them out of the model, or name their modules in trainer.freeze",
        )
    trainer.recorder.warn(f"{message}; they stay as they are")


def grouped(names: Sequence[str], shown: int = 8) -> str:
    """Names by the module that they are of: `head (weight, bias), scale`."""
    modules: dict[str, list[str]] = {}
    for name in names:
        module, _, parameter = name.rpartition(".")
        modules.setdefault(module, []).append(parameter)
    groups = [
        f"{module} ({', '.join(parameters)})" if module else ", ".join(parameters)
        for module, parameters in modules.items()
    ]
    rest = f" and {len(groups) - shown} more modules" if len(groups) > shown else ""
    return ", ".join(groups[:shown]) + rest


@contextmanager
def _noted(trainer: Trainer, batch: Batch, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"this was the dry batch of {what} before step {trainer.state.step + 1}: {batch}")
        vars(error)[_OFFENDING] = (f"{what} (the dry batch)", batch)
        raise


_OFFENDING = "flambeau_offending_batch"


def offending_batch(error: BaseException) -> tuple[str, Batch] | None:
    """The dry batch that an error came with, and what it was for."""
    return vars(error).get(_OFFENDING)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on an accelerator or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED", "std::bad_alloc")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


# ---------------------------------------------------------------- undoing


@contextmanager
def undone(trainer: Trainer) -> Iterator[Kept]:
    """Undo at its end what a trial in the block did to the model, to what is beside it, and to random generators.

    Batch norms make no collectives meanwhile.
    """
    holders = [trainer, *trainer.metrics.values()]
    with ExitStack() as stack:
        modules = [value for value in vars(trainer).values() if isinstance(value, nn.Module)]
        kept = Kept(modules, holders)
        stack.callback(kept.restore)
        for module in modules:
            stack.enter_context(unsynced(module))
        stack.enter_context(isolated(derive(trainer.seed, "rehearsal")))
        trainer.train_means = type(trainer.train_means)()
        trainer.rehearsing = True
        yield kept


class Kept:
    """The tensors and attributes of modules, and the attributes of other objects, as they are now.

    Tensors are copied to the host: on an accelerator the copies would take the memory that a trial is about.
    """

    def __init__(self, roots: Sequence[nn.Module], holders: Sequence[object]) -> None:
        modules = dict.fromkeys(module for root in roots for module in root.modules())
        states = [state for module in modules for state in (vars(module), module._parameters, module._buffers)]
        states += [vars(holder) for holder in holders if hasattr(holder, "__dict__")]
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = [(state, dict(state)) for state in states]
        held = (held for module in modules for held in (*module._parameters.values(), *module._buffers.values()))
        self._tensors = {id(tensor): _KeptTensor(tensor) for tensor in held if tensor is not None}
        self.clear_gradients()

    @property
    def host_bytes(self) -> int:
        """Memory that the copies take."""
        return sum(kept.value.nbytes for kept in self._tensors.values())

    def clear_gradients(self) -> None:
        for kept in self._tensors.values():
            if kept.tensor.is_leaf:
                kept.tensor.grad = None

    def buffers(self, model: nn.Module, *, only_changed: bool) -> dict[str, str]:
        """Buffers of `model`, and of what kind they are: all, or those that are not as they were."""
        before = {id(state): saved for state, saved in self._attributes}
        found = {}
        for prefix, module in model.named_modules():
            kind = "batch_norm" if isinstance(module, _NormBase) else "other"
            for name, old in before[id(module._buffers)].items():
                now = module._buffers.get(name)
                if old is not None and not (only_changed and now is not None and self._tensors[id(old)].same(now)):
                    found[f"{prefix}.{name}" if prefix else name] = kind
        return found

    def restore(self) -> None:
        """Put everything back, in place."""
        for state, saved in self._attributes:
            for name in state.keys() - saved.keys():
                del state[name]
            state.update(saved)
        for kept in self._tensors.values():
            kept.restore()


class _KeptTensor:
    """One tensor: the object, its memory, the values in it, and its gradient."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.memory = tensor.data
        self.gradient = tensor.grad if tensor.is_leaf else None
        self.value = tensor.detach().to("cpu", copy=True)

    def same(self, other: Tensor) -> bool:
        """Whether `other` has the values that this tensor had; NaN is NaN."""
        if other.shape != self.value.shape or other.dtype != self.value.dtype:
            return False
        other = other.detach().cpu()
        return bool(((other == self.value) | ((other != other) & (self.value != self.value))).all())

    @torch.no_grad()
    def restore(self) -> None:
        self.memory.copy_(self.value)
        self.tensor.data = self.memory  # a forward pass may have given it other memory
        if self.tensor.is_leaf:
            self.tensor.grad = self.gradient
