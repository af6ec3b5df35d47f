"""When numbers stop being finite: find the first place where it happened, and say so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from flambeau.data import Batch
from flambeau.errors import FlambeauError


class NonFiniteError(FlambeauError):
    """A loss, gradient, activation or weight became NaN or infinite."""


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
    for name, parameter in model.named_parameters():
        if found := first_bad_tensor(parameter.detach(), f"'{name}'"):
            return found
    for name, buffer in model.named_buffers():
        if torch.isnan(buffer).any():
            return f"'{name}' holds NaN"
    return None


def first_bad_gradient(model: nn.Module) -> str | None:
    """The first parameter of `model`, from its output back to its input, whose gradient is not finite."""
    for name, parameter in reversed(list(model.named_parameters())):
        if found := first_bad_tensor(parameter.grad, f"the gradient of '{name}'"):
            return found
    return None


def weights_are_finite(model: nn.Module) -> bool:
    """Whether all parameters of `model` are finite, with one wait for the device."""
    weights = [parameter.detach() for parameter in model.parameters() if parameter.is_floating_point()]
    if not weights:
        return True
    greatest = torch._foreach_norm(weights, math.inf)  # unlike a sum of squares it cannot overflow
    return bool(torch.isfinite(torch.stack([value.float() for value in greatest])).all())


def explain_bad_loss(model: nn.Module, batch: Batch, forward: Callable[[], object], previous: str) -> str:
    """Where a loss that is not finite comes from: inputs, targets, weights, an activation, or the criterion.

    `forward` computes the loss of `batch` once more, with the same random numbers. `previous` describes the batch of
    the step before, whose gradient is to blame when the weights are not finite.
    """
    if found := first_bad_tensor(batch.inputs, "the input") or first_bad_tensor(batch.targets, "the target"):
        return f"{found} (samples {_ids(batch)})"
    if found := first_bad_weight(model):
        return f"the weight {found}: the update before this step, on {previous}, had a gradient that is not finite"
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
                bad.setdefault(kind, f"module '{name or 'model'}' ({type(module).__name__}): {found}")

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
