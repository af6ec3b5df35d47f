"""When numbers stop being finite: find the first place where it happened, and say so."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from flambeau.data import Batch
from flambeau.distributed.sharding import is_sharded_model
from flambeau.errors import FlambeauError
from flambeau.runtime.shards import class_name, group_of, local_part, local_parts, true_everywhere
from flambeau.runtime.world import current_world

if TYPE_CHECKING:
    from flambeau.training.stepper import Stepper
    from flambeau.training.trainer import Trainer


class NonFiniteError(FlambeauError):
    """A loss, gradient, activation or weight became NaN or infinite."""


def reject_loss(trainer: Trainer, batch: Batch) -> None:
    """Do with a batch whose loss is not finite what `trainer.nan_policy` says: stop, or leave the step out.

    Raises:
        NonFiniteError: says where the number arose.
    """
    if trainer.settings.nan_policy == "stop":
        before = describe_batch(trainer.last_batch) if trainer.last_batch is not None else "no batch"
        reason = explain_bad_loss(trainer.model, batch, lambda: _repeat_forward(trainer, batch), before)
        raise NonFiniteError(f"the loss of step {trainer.state.step + 1} is not finite: {reason}")
    _skip(trainer, trainer.stepper, f"the loss is not finite ({describe_batch(batch)})")
    trainer.clear_gradients()


def reject_named_loss(trainer: Trainer, stepper: Stepper, batch: Batch) -> None:
    """The same with a loss that an update of one's own gave to one of several optimizers."""
    what = f"the loss of '{stepper.name}'"
    if trainer.settings.nan_policy == "stop":
        before = describe_batch(trainer.last_batch) if trainer.last_batch is not None else "no batch"
        reason = explain_bad_loss(trainer.model, batch, None, before)
        raise NonFiniteError(f"{what} in step {trainer.state.step + 1} is not finite: {reason}")
    _skip(trainer, stepper, f"{what} is not finite ({describe_batch(batch)})")


def reject_means(trainer: Trainer, bad: Mapping[str, int]) -> None:
    """Stop if a loss since the last log line was not finite.

    Args:
        bad: for each mean of the log that is not finite, the number of the first such value since then.

    Raises:
        NonFiniteError: says where.
    """
    name = next((name for name in bad if f"{name}/".startswith("train/loss/")), None)
    if name is None:
        return
    position, what = bad[name], name.removeprefix("train/").replace("/", " of ")
    where = first_bad_weight(trainer.model) or "all weights are finite"
    raise NonFiniteError(
        f"the {what} became NaN or infinite within the {trainer.settings.log_every} steps before step "
        f"{trainer.state.step} (at micro-batch {position + 1} of them): {where}"
    )


def require_finite_weights(trainer: Trainer) -> None:
    """Before a checkpoint: nobody could go on from weights that are not finite.

    Raises:
        NonFiniteError: names the first of them.
    """
    if not weights_are_finite(trainer.model):
        where = first_bad_weight(trainer.model)
        raise NonFiniteError(f"after step {trainer.state.step} {where}; no checkpoint of it is written")


def gradients_are_usable(trainer: Trainer, stepper: Stepper) -> bool:
    """Unscale and clip; false if this step's update must be left out.

    Raises:
        NonFiniteError: a gradient is not finite, and `trainer.nan_policy` says to stop.
    """
    scaler, clipping, policy = stepper.scaler, stepper.clipping, trainer.settings.nan_policy
    if scaler is not None:
        scaler.unscale_(stepper.optimizer)
    skips = scaler is not None or policy == "skip"
    if not (clipping.clips or clipping.logs or skips):
        return True
    norm, norms = clipping.clip()
    # The same on all; noted by all, it would weigh more with more.
    if (clipping.clips or clipping.logs) and trainer.world.is_main:
        score = stepper.label("train/grad_norm")
        trainer.train_means.add(score, norm, 1.0)
        for name, own in norms.items():
            trainer.train_means.add(f"{score}/{name}", own, 1.0)
    if not (skips or trainer.device.type == "cpu") or math.isfinite(norm.item()):
        return True
    if scaler is not None:  # the scaler's search for a scale that does not overflow is no fault
        stepper.counts.skip()
        return False
    where = first_bad_gradient(trainer.model) or "a gradient is not finite"
    if policy == "stop":
        raise NonFiniteError(f"step {trainer.state.step + 1}: {where}")
    _skip(trainer, stepper, where)
    return False


def _repeat_forward(trainer: Trainer, batch: Batch) -> None:
    trainer.seed_step()
    trainer.forward = trainer.model  # compiled code would not call the hooks that look at activations
    with trainer.precision.autocast():
        trainer.training_step(batch)


def _skip(trainer: Trainer, stepper: Stepper, reason: str) -> None:
    counts, of = stepper.counts, f" of '{stepper.name}'" if stepper.name is not None else ""
    counts.skip()
    counts.skipped_in_row += 1
    trainer.recorder.warn(f"step {trainer.state.step + 1}{of} is left out: {reason}")
    if counts.skipped_in_row > trainer.settings.max_skips:
        raise NonFiniteError(f"{counts.skipped_in_row} steps in a row{of} were left out; the last: {reason}")


def first_bad_tensor(value: Any, name: str) -> str | None:
    """The name of the first tensor in a nested value that is not finite everywhere."""
    if isinstance(value, torch.Tensor):
        if (value.is_floating_point() or value.is_complex()) and not torch.isfinite(value).all():
            kind = "NaN" if torch.isnan(value).any() else "infinite values"
            return f"{name} holds {kind}"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if found := first_bad_tensor(item, f"{name}.{key}"):
                return found
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if found := first_bad_tensor(item, f"{name}[{index}]"):
                return found
    return None


def first_bad_weight(model: nn.Module) -> str | None:
    """The first parameter of `model` that is not finite, or the first buffer that holds NaN.

    Infinite buffers are nothing unusual: masks of attention are.
    """
    return _first(model, _bad_weights(model))


def first_bad_gradient(model: nn.Module) -> str | None:
    """The first parameter of `model`, from its output back to its input, whose gradient is not finite."""
    return _first(model, _bad_gradients(model))


@torch.no_grad()
def _bad_weights(model: nn.Module) -> Iterator[tuple[int, str]]:
    """The number and the fault of each parameter and buffer that is not as it should be, as far as it lies here."""
    for number, (name, parameter) in enumerate(model.named_parameters()):
        if found := first_bad_tensor(local_part(parameter), f"'{name}'"):
            yield number, found
    for number, (name, buffer) in enumerate(model.named_buffers(), len(list(model.parameters()))):
        if torch.isnan(buffer).any():
            yield number, f"'{name}' holds NaN"


@torch.no_grad()
def _bad_gradients(model: nn.Module) -> Iterator[tuple[int, str]]:
    for number, (name, parameter) in enumerate(reversed(list(model.named_parameters()))):
        if found := first_bad_tensor(local_part(parameter.grad), f"the gradient of '{name}'"):
            yield number, found


def _first(model: nn.Module, faults: Iterator[tuple[int, str]]) -> str | None:
    """The first fault; of a model in pieces, that of all processes, each of which has to ask for it."""
    found = next(faults, None)
    if group_of(model.parameters()) is not None:
        found = min((tuple(fault) for fault in current_world().gather(found) if fault is not None), default=None)
    return found[1] if found is not None else None


@torch.no_grad()
def weights_are_finite(model: nn.Module) -> bool:
    """Whether all parameters of `model` are finite, with one wait for the device.

    Of a model in pieces all processes have to ask for it.
    """
    parameters = list(model.parameters())
    weights = [weight for weight in local_parts(parameters) if weight.is_floating_point() and weight.numel()]
    finite = torch.ones((), dtype=torch.bool, device=parameters[0].device if parameters else None)
    if weights:
        for order in (2, math.inf):  # the first is eight times faster on a CPU, and may overflow without a fault
            norms = torch._foreach_norm(weights, order)
            finite = torch.isfinite(torch.stack([value.float() for value in norms])).all()
            if finite:
                break
    return true_everywhere(finite, group_of(parameters))


def explain_bad_loss(model: nn.Module, batch: Batch, forward: Callable[[], object] | None, previous: str) -> str:
    """Where a loss that is not finite comes from: inputs, targets, weights, an activation, or the criterion.

    `forward` computes the loss of `batch` once more, with the same random numbers; None where that cannot be done.
    `previous` describes the batch of the step before, whose gradient is to blame when the weights are not finite.
    """
    if found := first_bad_tensor(batch.inputs, "the input") or first_bad_tensor(batch.targets, "the target"):
        return f"{found} (samples {_ids(batch)})"
    if fault := next(_bad_weights(model), None):
        return f"the weight {fault[1]}: the update before this step, on {previous}, had a gradient that is not finite"
    if forward is None or is_sharded_model(model):  # of a sharded one the other processes would have to repeat it too
        return f"inputs and weights are finite: it arose in the model or the criterion (samples {_ids(batch)})"
    module = _first_bad_activation(model, forward)
    if module is not None:
        return f"{module} (samples {_ids(batch)})"
    return f"all activations are finite: the criterion itself gave it (samples {_ids(batch)})"


def _first_bad_activation(model: nn.Module, forward: Callable[[], object]) -> str | None:
    """The first module with NaN in its output, and the first with infinite values if it came before.

    Infinite values alone may be meant (scores that a mask takes out), so NaN is looked for first.
    """
    bad: dict[str, str] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            found = first_bad_tensor(output, "its output")
            if found is not None:
                kind = "NaN" if found.endswith("NaN") else "infinite"
                bad.setdefault(kind, f"module '{name or 'model'}' ({class_name(module)}): {found}")

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    if not bad:
        return None
    kinds = list(bad)
    first = f"the first activation that fails is of {bad[kinds[0]]}"
    return first if len(kinds) == 1 or kinds[0] == "NaN" else f"{first}; then comes {bad[kinds[1]]}"


def describe_batch(batch: Batch) -> str:
    return f"samples {_ids(batch)}"


def _ids(batch: Batch, shown: int = 8) -> str:
    ids = [str(int(index)) for index in batch.ids[:shown]]
    return ", ".join(ids) + (f" ... ({batch.size} in all)" if batch.size > shown else "")
