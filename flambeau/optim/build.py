"""From the optimizer's class and the configuration's settings to an optimizer of a model's parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from flambeau.config.sections import OptimizerSettings
from flambeau.errors import UsageError
from flambeau.optim.groups import parameter_groups
from flambeau.optim.lazy_dynamo import defer_dynamo_import

_FUSED_CLASSES = (torch.optim.Adam, torch.optim.AdamW)
"""torch's optimizers that are made with `fused=True` where nothing speaks against it.

Not SGD: with momentum, torch's fused step fails when a parameter gets its first gradient after others have had
theirs (a head that is not always used, layers that are unfrozen), and if a loss scaler calls off the first step,
it goes on from a momentum that was never written (both seen with 2.13).
"""
_FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


def build_optimizer(
    model: nn.Module,
    cls: Callable[..., Optimizer],
    arguments: Mapping[str, Any],
    settings: OptimizerSettings,
    device: torch.device | str = "cpu",
    *,
    among: Collection[nn.Parameter] | None = None,
) -> Optimizer:
    """The optimizer of all trainable parameters, each in exactly one group.

    Args:
        model: on the device that it is trained on.
        cls: an optimizer class, called with the parameter groups and `arguments`.
        arguments: the optimizer's own settings (`lr`, `betas`, ...).
        settings: groups by name pattern, and whether biases and norms are spared weight decay.
        device: where the parameters are; Adam and AdamW use torch's fused kernel where the device has it and none
            of `fused`, `foreach`, `capturable` and `differentiable` is among the arguments.
        among: the parameters that are its to train, where several optimizers share a model; default: all.

    Raises:
        UsageError: the groups do not fit the model, or the optimizer refuses an argument's value.
    """
    defer_dynamo_import()
    groups = parameter_groups(model, settings, among=among)
    _check_takes(cls, {key for group in groups for key in group} - {"params", "name"})
    kwargs = dict(arguments)
    if _can_fuse(model, cls, kwargs, torch.device(device).type):
        kwargs["fused"] = True
    try:
        return cls(groups, **kwargs)
    except ValueError as error:  # torch's own optimizers check their arguments' values so
        if getattr(cls, "__module__", "").startswith("torch.optim"):
            raise UsageError(f"optimizer: {error}") from error
        raise


def _check_takes(cls: Callable[..., Optimizer], keys: set[str]) -> None:
    """Groups may set what the optimizer knows only: torch keeps any other key and never looks at it."""
    parameters = inspect.signature(cls).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in sorted(keys - parameters.keys()):
        raise UsageError(
            f"the optimizer {getattr(cls, '__name__', cls)} has no {key}",
            remedy=f"leave {key} out of optimizer.groups"
            + (" and set optimizer.no_decay: false" if key == "weight_decay" else ""),
        )


def _can_fuse(model: nn.Module, cls: Callable[..., Optimizer], arguments: Mapping[str, Any], device_type: str) -> bool:
    if cls not in _FUSED_CLASSES or device_type not in _FUSED_DEVICES:
        return False
    if not arguments.keys().isdisjoint({"fused", "foreach", "capturable", "differentiable"}):
        return False
    # The kernels take floating numbers only, no complex ones.
    return all(parameter.is_floating_point() for parameter in model.parameters() if parameter.requires_grad)
