"""Where a value was written, and the tree that carries values together with their places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Scalar = str | int | float | bool | None
Key = str | int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from; its text is a place that people (and terminals) can go to."""

    kind: Literal["file", "environment", "command line", "default"]
    place: str
    """`configs/lenet.yaml:7`, the name of an environment variable, `command line` or `default`."""

    def __str__(self) -> str:
        return self.place

    @classmethod
    def file(cls, path: Path, line: int) -> Origin:
        """A line (from 1) of a file."""
        return cls("file", f"{shown(path)}:{line}")


COMMAND_LINE = Origin("command line", "command line")
DEFAULT = Origin("default", "default")


@dataclass(slots=True)
class Node:
    """A value of a configuration and its origin; mappings and lists hold further nodes."""

    value: Scalar | list[Node] | dict[Key, Node]
    origin: Origin
    empty: bool = False
    """Nothing was written after the colon; its value is None."""


def plain(node: Node) -> Any:
    """The values alone: nested dicts, lists and scalars, shared with nothing."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def children(node: Node) -> list[tuple[Key, Node]]:
    """The entries of a mapping or list with their keys or indices; none for a scalar."""
    if isinstance(node.value, dict):
        return list(node.value.items())
    return list(enumerate(node.value)) if isinstance(node.value, list) else []


def walk(node: Node, path: tuple[Key, ...] = ()) -> Iterator[tuple[tuple[Key, ...], Node]]:
    """Every node beneath (and with) this one, parents first, with its path."""
    yield path, node
    for key, child in children(node):
        yield from walk(child, (*path, key))


def dotted(path: Sequence[Key]) -> str:
    """`("optimizer", "groups", 0, "lr")` as `optimizer.groups.0.lr`."""
    return ".".join(str(key) for key in path)


def shown(path: Path) -> str:
    """A path as people want to read it: relative to the working directory if it lies below, else in full."""
    absolute = path.absolute()
    try:
        return absolute.relative_to(Path.cwd()).as_posix()
    except (ValueError, FileNotFoundError):  # elsewhere, or the working directory was deleted
        return absolute.as_posix()
