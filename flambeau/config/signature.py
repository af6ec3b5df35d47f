"""Signatures read from source: the arguments of a class or function, without importing it.

Follows re-exports, aliases, base classes, dataclasses, and `**kwargs` handed to `super().__init__` or to
another function. What cannot be followed makes a signature *open*: any keyword passes, and the call decides.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flambeau.config.arguments import Code, Parameter, constructor_arguments, function_arguments
from flambeau.config.lineage import lineage
from flambeau.config.source import (
    Definition,
    FunctionNode,
    Missing,
    Source,
    Unknown,
    class_functions,
    name_of,
)

__all__ = ["Code", "Parameter", "Signature", "read_class", "read_signature"]


@dataclass(eq=False)
class Signature:
    """The arguments of a class or function, and what else its source tells."""

    target: str
    """Import path of the definition, re-exports followed."""
    file: Path | None
    """None if there is no Python source: compiled, or computed at run time."""
    line: int
    kind: Literal["class", "function", "unknown"]
    parameters: dict[str, Parameter] = field(default_factory=dict)
    open: bool = False
    """Whether keywords beside the parameters may be taken."""
    summary: str = ""
    """First line of the docstring."""
    ancestors: tuple[str, ...] = ()
    """Import paths of the base classes, nearest first."""
    whole: bool = True
    """Whether all base classes could be read."""
    classes: tuple[ast.ClassDef, ...] = ()
    """The class and those of its bases that could be read."""

    @functools.cached_property
    def methods(self) -> frozenset[str]:
        """All methods that a class or its readable bases define."""
        return frozenset(name for node in self.classes for name in class_functions(node))

    @functools.cached_property
    def offers(self) -> frozenset[str]:
        """Public attributes, properties, methods and annotated fields of a class, its bases' included."""
        found = {name for node in self.classes for name in _attributes(node)} | self.methods
        return frozenset(name for name in found if not name.startswith("_"))


def read_signature(dotted: str, search: Sequence[Path] = (), *, source: Source | None = None) -> Signature | Missing:
    """The signature of the class or function at an import path; nothing is imported.

    Args:
        dotted: import path, re-exports allowed: `torch.optim.AdamW`.
        search: folders to look for modules in before Python's own path.
        source: a reader to share between calls, so that no file is read twice.

    Returns:
        The signature (open and without a file, if there is no source to read), or what is missing.
    """
    source = source or Source(search)
    entity = source.resolve(dotted)
    if isinstance(entity, Missing):
        return entity
    if not isinstance(entity, Definition):
        known = entity.dotted if isinstance(entity, Unknown) else dotted
        return Signature(known, None, 0, "unknown", open=True, whole=False)
    if isinstance(entity.node, ast.ClassDef):
        return read_class(entity, source)
    parameters, is_open = function_arguments(entity, source, bound=entity.owner is not None and not _is_static(entity))
    return Signature(
        entity.dotted,
        entity.module.file,
        entity.node.lineno,
        "function",
        parameters,
        is_open,
        _summary(entity.node),
    )


def _summary(node: ast.ClassDef | FunctionNode) -> str:
    return (ast.get_docstring(node) or "").strip().split("\n", 1)[0]


def _is_static(function: Definition) -> bool:
    return "staticmethod" in map(name_of, function.node.decorator_list)


def read_class(cls: Definition, source: Source) -> Signature:
    """The signature of a class whose definition was found."""
    line = lineage(cls, source)
    parameters, is_open = constructor_arguments(line, 0, source)
    return Signature(
        cls.dotted,
        cls.module.file,
        cls.node.lineno,
        "class",
        parameters,
        is_open,
        _summary(cls.node),
        line.ancestors,
        not line.unread,
        tuple(item.node for item in line.classes if isinstance(item.node, ast.ClassDef)),
    )


def _attributes(cls: ast.ClassDef) -> set[str]:
    """Names assigned in a class's body, and to `self` in its methods."""
    found = set()
    for item in cls.body:
        targets = item.targets if isinstance(item, ast.Assign) else [getattr(item, "target", None)]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    for function in class_functions(cls).values():
        for node in ast.walk(function):
            if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
                continue
            if name_of(node.value) == "self":
                found.add(node.attr)
    return found
