"""From the optimizer's class and the configuration's settings to an optimizer of a model's parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from flambeau.config.scaling import scaled_rate
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
    batch_size: int | None = None,
    among: Collection[nn.Parameter] | None = None,
) -> Optimizer:
    """The optimizer of all trainable parameters, each in exactly one group.

    Args:
        model: on the device that it is trained on.
        cls: an optimizer class, called with the parameter groups and `arguments`.
        arguments: the optimizer's own settings (`lr`, `betas`, ...).
        settings: groups, what is spared weight decay, and the batch that learning rates are meant for.
        device: where the parameters are; Adam and AdamW use torch's fused kernel where the device has it and none
            of `fused`, `foreach`, `capturable` and `differentiable` is among the arguments.
        batch_size: the global batch, for `settings.lr_reference_batch`.
        among: the parameters that are its to train, where several optimizers share a model; default: all.

    Raises:
        UsageError: the groups do not fit the model, or the optimizer refuses an argument's value.
    """
    defer_dynamo_import()
    kwargs = dict(arguments)
    groups = parameter_groups(model, settings, _rate(cls, kwargs), among=among)
    _check_takes(cls, {key for group in groups for key in group} - {"params", "name"})
    if settings.lr_reference_batch is not None:
        _scale_rates(cls, kwargs, groups, settings, batch_size)
    if _can_fuse(model, cls, kwargs, torch.device(device).type):
        kwargs["fused"] = True
    try:
        return cls(groups, **kwargs)
    except ValueError as error:  # torch's own optimizers check their arguments' values so
        if getattr(cls, "__module__", "").startswith("torch.optim"):
            raise UsageError(f"optimizer: {error}") from error
        raise


def _rate(cls: Callable[..., Optimizer], arguments: Mapping[str, Any]) -> float | None:
    """The optimizer's learning rate, its own default included; None if it has none."""
    parameter = inspect.signature(cls).parameters.get("lr")
    rate = arguments.get("lr", parameter.default if parameter is not None else None)
    return float(rate) if isinstance(rate, int | float | torch.Tensor) else None


def _scale_rates(
    cls: Callable[..., Optimizer],
    arguments: dict[str, Any],
    groups: Sequence[dict[str, Any]],
    settings: OptimizerSettings,
    batch_size: int | None,
) -> None:
    """Scale all learning rates from the batch that they are meant for to the run's own."""
    rate = _rate(cls, arguments)
    if rate is None:
        raise UsageError("optimizer.lr_reference_batch: the optimizer has no lr", remedy="give optimizer.lr")
    if batch_size is None:
        raise UsageError("optimizer.lr_reference_batch: the batch of the run is not known", remedy="give batch_size")
    scale = partial(scaled_rate, batch=batch_size, reference=settings.lr_reference_batch or 1, rule=settings.lr_scaling)
    arguments["lr"] = scale(rate)
    for group in groups:
        if "lr" in group:
            group["lr"] = scale(group["lr"])


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
