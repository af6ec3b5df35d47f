"""The base classes of a class, read from source."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from flambeau.config.source import Definition, FunctionNode, Source, name_of

_ROOTS = {
    "torch.nn.Module": "torch.nn.modules.module.Module",
    "torch.nn.modules.Module": "torch.nn.modules.module.Module",
    "torch.optim.Optimizer": "torch.optim.optimizer.Optimizer",
}
"""Bases that are not read, under the paths that they are known by."""

MODULE = "torch.nn.modules.module.Module"
OPTIMIZER = "torch.optim.optimizer.Optimizer"

_PLAIN = frozenset({"object", "abc.ABC", MODULE})
_PLAIN_HOMES = ("typing.", "typing_extensions.", "collections.abc.")
_GENERATING = frozenset({"NamedTuple", "TypedDict"})
"""Bases in typing that write a constructor."""


def is_plain_base(dotted: str) -> bool:
    """Whether a base class takes no arguments of its own, so that it need not be read."""
    home, _, name = dotted.rpartition(".")
    return dotted in _PLAIN or (f"{home}." in _PLAIN_HOMES and name not in _GENERATING)


@dataclass(frozen=True)
class Lineage:
    """A class and its bases in the order of method resolution."""

    classes: list[Definition]
    ancestors: tuple[str, ...]
    unread: bool
    """Whether there is a base that could not be read."""


def lineage(cls: Definition, source: Source) -> Lineage:
    """The bases of a class, nearest first; one that is reached twice stands after all its subclasses."""
    classes: list[Definition] = []
    names: list[str] = []
    unread = False

    def visit(definition: Definition, depth: int) -> None:
        nonlocal unread
        assert isinstance(definition.node, ast.ClassDef)
        for base in definition.node.bases:
            dotted = source.qualify(definition.module, base)
            if dotted is None or depth > 20:
                unread = True
                continue
            dotted = _ROOTS.get(dotted, dotted)
            if is_plain_base(dotted):
                names.append(dotted)
                continue
            found = source.resolve(dotted)
            if isinstance(found, Definition) and isinstance(found.node, ast.ClassDef):
                dotted = _ROOTS.get(found.dotted, found.dotted)
                names.append(dotted)
                if not is_plain_base(dotted):
                    classes.append(found)
                    visit(found, depth + 1)
            else:
                names.append(dotted)
                unread = True

    visit(cls, 0)
    unique: dict[tuple[str, int], Definition] = {}
    for found in reversed(classes):
        unique.setdefault((found.module.name, found.node.lineno), found)
    names = list(dict.fromkeys(reversed(names)))
    return Lineage([cls, *reversed(unique.values())], tuple(reversed(names)), unread)


def is_dataclass(node: ast.ClassDef | FunctionNode) -> bool:
    """Whether a class is decorated as a standard dataclass."""
    return any(name_of(decorator) in ("dataclass", "dataclasses.dataclass") for decorator in node.decorator_list)
