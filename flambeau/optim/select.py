"""Parameters chosen by name, by the class of their module and by their number of dimensions."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from flambeau.config.sections import SelectionSettings
from flambeau.errors import UsageError


def names_by_parameter(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """All names of each parameter, in the model's order; tied parameters have more than one."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names


class Parameters:
    """The parameters of a model with all that they can be chosen by.

    Args:
        only: leave out all others: those of one of several optimizers.
    """

    def __init__(self, model: nn.Module, only: Collection[nn.Parameter] | None = None) -> None:
        self.names = names_by_parameter(model)
        if only is not None:
            chosen = set(only)
            self.names = {parameter: names for parameter, names in self.names.items() if parameter in chosen}
        self._classes: dict[nn.Parameter, set[type]] = {}
        for module in model.modules():
            for parameter in module.parameters():
                self._classes.setdefault(parameter, set()).update(type(module).__mro__)

    @property
    def trainable(self) -> list[nn.Parameter]:
        """Those that get a gradient, in the model's order."""
        return [parameter for parameter in self.names if parameter.requires_grad]

    def chosen(self, selection: SelectionSettings) -> list[nn.Parameter]:
        """The parameters, frozen ones too, that fit all keys of a selection."""
        return [parameter for parameter in self.names if self._fits(parameter, selection)]

    def _fits(self, parameter: nn.Parameter, selection: SelectionSettings) -> bool:
        patterns, types, dims = (_listed(item) for item in (selection.pattern, selection.type, selection.ndim))
        return (
            (not patterns or any(fnmatchcase(name, pattern) for name in self.names[parameter] for pattern in patterns))
            and (not types or any(_is_called(cls, name) for cls in self._classes[parameter] for name in types))
            and (not dims or parameter.ndim in dims)
        )

    def require(self, key: str, selection: SelectionSettings) -> list[nn.Parameter]:
        """The trainable parameters that fit a selection.

        Raises:
            UsageError: there is none, with the nearest names; or the selection says nothing.
        """
        if not any(map(_listed, (selection.pattern, selection.type, selection.ndim))):
            raise UsageError(f"{key}: nothing says which parameters are meant", remedy="give pattern, type or ndim")
        matched = self.chosen(selection)
        found = [parameter for parameter in matched if parameter.requires_grad]
        if found:
            return found
        head = f"{key}: {describe(selection)} "
        if matched:
            raise UsageError(head + "matches frozen parameters only")
        raise UsageError(head + "matches no parameter of the model", remedy=self._nearest(selection))

    def _nearest(self, selection: SelectionSettings) -> str:
        known = sorted({name for aliases in self.names.values() for name in aliases})
        prefixes = {name.rsplit(".", depth)[0] + ".*" for name in known for depth in range(1, name.count(".") + 1)}
        for pattern in _listed(selection.pattern):
            if not any(fnmatchcase(name, pattern) for name in known):
                near = difflib.get_close_matches(pattern, [*known, *sorted(prefixes)], n=3, cutoff=0.4) or known[:3]
                return f"nearest names: {', '.join(near)}"
        classes = {cls for held in self._classes.values() for cls in held}
        for name in _listed(selection.type):
            if not any(_is_called(cls, name) for cls in classes):
                own = sorted({cls.__name__ for cls in classes} - {"object", "Module"})
                near = difflib.get_close_matches(name.rpartition(".")[2], own, n=3, cutoff=0.4) or own
                return f"classes of modules with parameters: {', '.join(near)}"
        dims = sorted({parameter.ndim for parameter in self.names})
        return f"numbers of dimensions: {', '.join(map(str, dims))}; all keys of a group have to fit together"


def claims(
    key: str, parameters: Parameters, selections: Sequence[SelectionSettings], taken: Sequence[nn.Parameter] = ()
) -> list[list[nn.Parameter]]:
    """What each selection gets: a parameter goes to the first that fits it, which has to be the narrower one.

    Args:
        key: where the selections stand, for messages.
        taken: parameters that others have already.

    Raises:
        UsageError: a selection gets nothing; two overlap and neither lies within the other; or they give one name to
            two of them.
    """
    fits = [parameters.require(key, selection) for selection in selections]
    owner: dict[nn.Parameter, int] = {}
    before = set(taken)
    for number, members in enumerate(fits):
        for parameter in members:
            first = owner.setdefault(parameter, number)
            if first == number or parameter in before:
                continue
            if not set(fits[first]) <= set(members):
                both = f"{describe(selections[first])} and {describe(selections[number])}"
                name = parameters.names[parameter][0]
                if set(members) <= set(fits[first]):
                    continue  # reported below if nothing is left for it
                raise UsageError(
                    f"{key}: {both} both take '{name}', and neither lies within the other",
                    remedy="put a group before them that names what they share, or let them not overlap",
                )
    given = [
        [parameter for parameter in members if owner[parameter] == number and parameter not in before]
        for number, members in enumerate(fits)
    ]
    for selection, members in zip(selections, given, strict=True):
        if not members:
            raise UsageError(
                f"{key}: {describe(selection)} takes no parameter that an earlier group does not take already",
                remedy="put the narrower one first",
            )
    return given


def describe(selection: SelectionSettings) -> str:
    """A selection for messages: `the pattern 'head.*'`, `the type LayerNorm and ndim 1`."""
    words = []
    if patterns := _listed(selection.pattern):
        words.append(f"the pattern {', '.join(map(repr, patterns))}")
    if types := _listed(selection.type):
        words.append(f"the type {', '.join(types)}")
    if dims := _listed(selection.ndim):
        words.append(f"ndim {', '.join(map(str, dims))}")
    return " and ".join(words)


def label(selection: SelectionSettings) -> str:
    """A selection as a name in the log: `head.*`, `LayerNorm`, `ndim=1`."""
    dims = [f"ndim={dim}" for dim in _listed(selection.ndim)]
    return ",".join([*_listed(selection.pattern), *_listed(selection.type), *dims])


def distinct(key: str, names: Sequence[str]) -> None:
    """Refuse two groups of one name.

    Raises:
        UsageError: names the name.
    """
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{key}: two groups are called {name!r}", remedy="give each a name of its own")


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _is_called(cls: type, name: str) -> bool:
    """Whether a class has this name, or is what lies at this import path; nothing is imported to find out."""
    home, _, last = name.rpartition(".")
    if not home:
        return cls.__name__ == last and cls not in (object, nn.Module)
    modules: Mapping[str, Any] = sys.modules
    return f"{cls.__module__}.{cls.__qualname__}" == name or getattr(modules.get(home), last, None) is cls
