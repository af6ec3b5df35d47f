"""Which parameter is trained with which learning rate and weight decay."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

from flambeau.config.sections import GroupSettings, OptimizerSettings
from flambeau.errors import UsageError


def parameter_groups(
    model: nn.Module, settings: OptimizerSettings, *, among: Collection[nn.Parameter] | None = None
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: every trainable parameter in exactly one, frozen ones in none.

    A parameter belongs to the first of `settings.groups` whose pattern matches one of its names (tied
    parameters have several), else to the rest. With `no_decay` each group is parted in two, the second with
    weight decay 0. A group without a learning rate or weight decay of its own takes the optimizer's.

    Args:
        among: the parameters to choose from; default: all.

    Raises:
        UsageError: nothing is trainable; a group takes no parameter; or a group's weight decay would apply to
            none of its parameters.

    Returns:
        Groups as torch takes them; those of `settings.groups` carry their pattern as `name`.
    """
    names = names_by_parameter(model)
    chosen_from = set(names if among is None else among)
    trainable = {p: aliases for p, aliases in names.items() if p.requires_grad and p in chosen_from}
    if not trainable:
        raise UsageError("the model has no trainable parameters")

    chosen: list[list[nn.Parameter]] = [[] for _ in settings.groups]
    rest: list[nn.Parameter] = []
    for parameter, aliases in trainable.items():
        for members, group in zip(chosen, settings.groups, strict=True):
            if any(fnmatchcase(name, group.pattern) for name in aliases):
                members.append(parameter)
                break
        else:
            rest.append(parameter)

    groups: list[dict[str, Any]] = []
    for members, group in zip(chosen, settings.groups, strict=True):
        if not members:
            raise _takes_nothing(group, names)
        own: dict[str, Any] = {"name": group.pattern}
        own |= {key: value for key in ("lr", "weight_decay") if (value := getattr(group, key)) is not None}
        if settings.no_decay and own.get("weight_decay") and all(map(_is_bias_or_norm, members)):
            raise UsageError(
                f"optimizer.groups: the weight decay of {group.pattern!r} applies to nothing, as no_decay "
                "spares biases and norms",
                remedy="leave out the group's weight_decay or set no_decay: false",
            )
        groups += _parted(members, own, settings.no_decay)
    return groups + _parted(rest, {}, settings.no_decay)


def names_by_parameter(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """All names of each parameter, in the model's order; tied parameters have more than one."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names


def _is_bias_or_norm(parameter: nn.Parameter) -> bool:
    # Biases, and scales and shifts of norms, have one dimension; weights have two or more.
    return parameter.ndim < 2


def _parted(members: list[nn.Parameter], own: dict[str, Any], no_decay: bool) -> list[dict[str, Any]]:
    if not no_decay:
        return [{"params": members, **own}] if members else []
    decayed = [parameter for parameter in members if not _is_bias_or_norm(parameter)]
    undecayed = [parameter for parameter in members if _is_bias_or_norm(parameter)]
    groups = [{"params": decayed, **own}, {"params": undecayed, **own, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _takes_nothing(group: GroupSettings, names: Mapping[nn.Parameter, Sequence[str]]) -> UsageError:
    matched = [
        parameter for parameter, aliases in names.items() if any(fnmatchcase(name, group.pattern) for name in aliases)
    ]
    head = f"optimizer.groups: the pattern {group.pattern!r} "
    if any(parameter.requires_grad for parameter in matched):
        return UsageError(
            head + "takes no parameter that an earlier group does not take already",
            remedy="put the narrower pattern first",
        )
    if matched:
        return UsageError(head + "matches frozen parameters only")
    known = sorted({name for aliases in names.values() for name in aliases})
    prefixes = {name.rsplit(".", depth)[0] + ".*" for name in known for depth in range(1, name.count(".") + 1)}
    near = difflib.get_close_matches(group.pattern, [*known, *sorted(prefixes)], n=3, cutoff=0.4) or known[:3]
    return UsageError(head + "matches no parameter of the model", remedy=f"nearest names: {', '.join(near)}")


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """`lr`, and beside it the rates of groups that a pattern chose (`lr/<pattern>`) or that began with another."""
    groups = optimizer.param_groups
    main = next((group for group in groups if "name" not in group), groups[0])
    rates = {"lr": main["lr"]}
    for number, group in enumerate(groups):
        if group is not main and ("name" in group or group["initial_lr"] != main["initial_lr"]):
            rates[f"lr/{group.get('name', number)}"] = group["lr"]
    return rates
