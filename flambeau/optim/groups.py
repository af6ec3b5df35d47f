"""Which parameter is trained with which learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from flambeau.config.convert import to_settings
from flambeau.config.sections import GroupSettings, OptimizerSettings, SelectionSettings
from flambeau.errors import UsageError
from flambeau.optim.layer_decay import depth_factors
from flambeau.optim.select import Parameters, claims, describe, distinct, label


@dataclass
class _Group:
    """A group before it is parted by weight decay and depth."""

    members: list[nn.Parameter]
    own: dict[str, Any] = field(default_factory=dict)


def parameter_groups(
    model: nn.Module,
    settings: OptimizerSettings,
    lr: float | None = None,
    *,
    among: Collection[nn.Parameter] | None = None,
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: every trainable parameter in exactly one, frozen ones in none.

    A parameter belongs to the first of `settings.groups` that fits it, then to the first of those that the model's own
    `parameter_groups()` gives (mappings like those of the configuration), else to the rest. Tied parameters have
    several names. With `no_decay` each group is parted in two, the second with weight decay 0; with `layer_decay` by
    the depth of the blocks. A group without a learning rate or weight decay of its own takes the optimizer's.

    Args:
        lr: the optimizer's learning rate, that factors are of.
        among: the parameters of this optimizer, of several; default: all. Groups of the model's own that are about
            others are left out.

    Args:
        among: the parameters to choose from; default: all.

    Raises:
        UsageError: nothing is trainable; a group takes no parameter; two overlap and neither lies within the other; a
            group's weight decay would apply to none of its parameters; or a factor is given and no rate.

    Returns:
        Groups as torch takes them; all but those of the rest carry a `name`.
    """
    parameters = Parameters(model, among)
    trainable = parameters.trainable
    if not trainable:
        raise UsageError("the model has no trainable parameters")
    spared = _spared(parameters, settings)

    groups: list[_Group] = []
    taken: list[nn.Parameter] = []
    own_groups = _own_groups(model)
    if among is not None:
        own_groups = [group for group in own_groups if parameters.chosen(group)]
    for key, given in (("optimizer.groups", settings.groups), (_hook(model), own_groups)):
        for wanted, members in zip(given, claims(key, parameters, given, taken), strict=True):
            groups.append(_Group(members, _arguments(key, wanted, lr)))
            if settings.no_decay and wanted.weight_decay and all(member in spared for member in members):
                what = "biases and norms" if settings.no_decay is True else "them"
                raise UsageError(
                    f"{key}: the weight decay of {describe(wanted)} applies to nothing, as no_decay spares {what}",
                    remedy="leave out the group's weight_decay or set no_decay: false",
                )
        taken += [parameter for group in groups for parameter in group.members]
    distinct("optimizer.groups", [group.own["name"] for group in groups])
    seen = set(taken)
    groups.append(_Group([parameter for parameter in trainable if parameter not in seen]))

    factors = depth_factors(model, settings.layer_decay) if settings.layer_decay is not None else {}
    parted: list[dict[str, Any]] = []
    for group in groups:
        for decayed in (True, False):
            members = [parameter for parameter in group.members if (parameter not in spared) == decayed]
            own = group.own if decayed else {**group.own, "weight_decay": 0.0}
            parted += _by_depth(members, own, factors, lr)
    return parted


def _spared(parameters: Parameters, settings: OptimizerSettings) -> set[nn.Parameter]:
    """The parameters without weight decay."""
    if isinstance(settings.no_decay, bool):
        # Biases, and scales and shifts of norms, have one dimension; weights have two or more.
        return {parameter for parameter in parameters.names if settings.no_decay and parameter.ndim < 2}
    rules = [
        rule if isinstance(rule, SelectionSettings) else SelectionSettings(pattern=rule) for rule in settings.no_decay
    ]
    return {parameter for rule in rules for parameter in parameters.require("optimizer.no_decay", rule)}


def _hook(model: nn.Module) -> str:
    return f"{type(model).__name__}.parameter_groups()"


def _own_groups(model: nn.Module) -> list[GroupSettings]:
    """What the model says of its own groups."""
    own = getattr(model, "parameter_groups", None)
    if not callable(own):
        return []
    groups = []
    for given in own():
        if not isinstance(given, Mapping):
            raise UsageError(
                f"{_hook(model)} gives a {type(given).__name__}, not a mapping",
                remedy='give mappings like {"pattern": "head.*", "lr_factor": 10}',
            )
        try:
            groups.append(to_settings(GroupSettings, given))
        except TypeError as error:
            raise UsageError(f"{_hook(model)}: {error}") from error
    return groups


def _arguments(key: str, group: GroupSettings, lr: float | None) -> dict[str, Any]:
    """What a group sets for itself, under torch's names."""
    own: dict[str, Any] = {"name": group.name or label(group)}
    if group.lr is not None and group.lr_factor is not None:
        raise UsageError(f"{key}: {describe(group)} has both lr and lr_factor", remedy="give one of them")
    if group.lr is not None:
        own["lr"] = group.lr
    elif group.lr_factor is not None:
        own["lr"] = _of(key, group.lr_factor, lr)
    if group.weight_decay is not None:
        own["weight_decay"] = group.weight_decay
    for name, value in group.arguments.items():
        if name in ("params", "name", "lr", "weight_decay"):
            raise UsageError(f"{key}: {describe(group)} has {name} among its arguments", remedy=f"give it as {name}:")
        own[name] = tuple(value) if isinstance(value, list) else value
    return own


def _of(key: str, factor: float, lr: float | None) -> float:
    if lr is None:
        raise UsageError(
            f"{key}: a factor of the learning rate, and the optimizer has none", remedy="give optimizer.lr"
        )
    return factor * lr


def _by_depth(
    members: list[nn.Parameter], own: dict[str, Any], factors: Mapping[nn.Parameter, float], lr: float | None
) -> list[dict[str, Any]]:
    if not factors:
        return [{"params": members, **own}] if members else []
    depths: dict[float, list[nn.Parameter]] = {}
    for parameter in members:
        depths.setdefault(factors[parameter], []).append(parameter)
    rate = own.get("lr", lr)
    return [
        {"params": alike, **own, "lr": _of("optimizer.layer_decay", factor, rate)}
        for factor, alike in sorted(depths.items(), key=lambda item: -item[0])
    ]


def number(value: float | torch.Tensor) -> float:
    """A learning rate or weight decay as a number; some optimizers keep theirs in a tensor."""
    return float(value)


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """`lr`, and beside it the rates of named groups (`lr/<name>`) and of those that began with another."""
    return _logged(optimizer, "lr", "lr")


def weight_decays(optimizer: Optimizer) -> dict[str, float]:
    """`wd`, and beside it those of the groups that have another."""
    return _logged(optimizer, "wd", "weight_decay")


def _logged(optimizer: Optimizer, short: str, key: str) -> dict[str, float]:
    groups = [group for group in optimizer.param_groups if key in group]
    if key == "weight_decay":
        groups = [group for group in groups if group.get("initial_weight_decay", group[key])] or groups[:1]
    main = next((group for group in groups if "name" not in group), groups[0])
    values = {short: number(main[key])}
    first = f"initial_{key}"
    for place, group in enumerate(groups):
        if group is main:
            continue
        if "name" in group or group.get(first) != main.get(first):
            own = f"{short}/{group.get('name', place)}"
            values.setdefault(own, number(group[key]))
    return values
