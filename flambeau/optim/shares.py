"""Which of several optimizers has which of a model's parameters."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.optim import Optimizer

from flambeau.errors import UsageError
from flambeau.optim.select import names_by_parameter


def shares_of(model: nn.Module, patterns: Mapping[str, Sequence[str]]) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters of each optimizer, in the model's order.

    Args:
        patterns: by the optimizer's name, shell-style patterns of names of parameters; of none, its parameters are
            those of the submodule of that name.

    Raises:
        UsageError: a pattern matches nothing; a trainable parameter is in two optimizers, or in none.
    """
    names = names_by_parameter(model)
    known = [name for aliases in names.values() for name in aliases]
    shares: dict[str, list[nn.Parameter]] = {}
    for label, own in patterns.items():
        for pattern in own or [f"{label}.*"]:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise _matches_nothing(label, pattern, known, is_default=not own)
        shares[label] = [
            parameter
            for parameter, aliases in names.items()
            if parameter.requires_grad
            and any(fnmatchcase(name, pattern) for name in aliases for pattern in own or [f"{label}.*"])
        ]
        if not shares[label]:
            raise UsageError(f"optimizers.{label}: all of its parameters are frozen", remedy="leave it out")
    _check(model, shares)
    return shares


def check_shares(model: nn.Module, optimizers: Mapping[str, Optimizer]) -> None:
    """Every trainable parameter is in exactly one of the optimizers.

    Raises:
        UsageError: names those in two, or in none.
    """
    if not optimizers:
        raise UsageError("there is no optimizer", remedy="give one, or several by name")
    _check(model, {label: [p for g in own.param_groups for p in g["params"]] for label, own in optimizers.items()})


def _check(model: nn.Module, shares: Mapping[str, Collection[nn.Parameter]]) -> None:
    owners: dict[nn.Parameter, list[str]] = {}
    for label, parameters in shares.items():
        for parameter in parameters:
            owners.setdefault(parameter, []).append(label)
    names = names_by_parameter(model)
    for parameter, labels in owners.items():
        if len(labels) > 1:
            several = [name for other, (name, *_) in names.items() if len(owners.get(other, ())) > 1]
            raise UsageError(
                f"{_listed(several or ['a parameter'])}: in the optimizers {' and '.join(labels)}",
                remedy="give each parameter to one, by narrower patterns in `parameters`",
            )
        if parameter not in names:
            raise UsageError(f"the optimizer '{labels[0]}' has parameters that are not the model's")
    left = [name for parameter, (name, *_) in names.items() if parameter.requires_grad and parameter not in owners]
    if left:
        raise UsageError(
            f"{_listed(left)}: in none of the optimizers {', '.join(shares)}",
            remedy="give them to one by `parameters`, or name their modules in trainer.freeze",
        )


def _listed(names: Sequence[str], shown: int = 6) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(f"'{name}'" for name in names[:shown]) + rest


def _matches_nothing(label: str, pattern: str, known: Sequence[str], *, is_default: bool) -> UsageError:
    prefixes = sorted({name.rsplit(".", depth)[0] for name in known for depth in range(1, name.count(".") + 1)})
    if is_default:
        return UsageError(
            f"optimizers.{label}: the model has no submodule '{label}' with parameters",
            remedy="name its parameters by patterns in `parameters`"
            + (f"; the submodules are {', '.join(name for name in prefixes if '.' not in name)}" if prefixes else ""),
        )
    near = difflib.get_close_matches(pattern, [*known, *(f"{prefix}.*" for prefix in prefixes)], n=3, cutoff=0.4)
    return UsageError(
        f"optimizers.{label}.parameters: the pattern {pattern!r} matches no parameter of the model",
        remedy=f"nearest names: {', '.join(near or known[:3])}",
    )
