"""How a later layer of a configuration changes an earlier one.

Mappings merge key by key; lists and scalars replace. In the section of a part, a new `name` starts the part's
arguments anew (an argument of AdamW never reaches SGD), while the settings that the engine reads itself stay.
`null` takes away a section, or a metric, callback or tracker.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass, fields, replace
from typing import Any

from flambeau.config.nearest import did_you_mean
from flambeau.config.origin import Key, Node, Origin, Scalar, dotted
from flambeau.config.slots import SLOTS, TOP_LEVEL, Slot
from flambeau.errors import Problem

Mapping = dict[Key, Node]


@dataclass
class Report:
    """What is found wrong while merging."""

    problems: list[Problem]
    complete: bool = True
    """Whether every file was read; if not, a complaint of what is not there would only mislead."""


def merge_file(root: Mapping, layer: Mapping, report: Report) -> None:
    """Lays a file's top-level mapping over what came before it (changed in place)."""
    for key, node in layer.items():
        if node.value is None and key in TOP_LEVEL:
            if node.empty and key in SLOTS:
                report.problems.append(Problem(str(node.origin), str(key), "is an empty section", _EMPTY_SECTION))
            else:
                root.pop(key, None)
            continue
        slot = SLOTS.get(key) if isinstance(key, str) else None
        low = root.get(key)
        if slot is not None and slot.form == "many":
            root[key] = _merge_parts(low, node, slot, report)
        elif slot is not None and slot.kind is not None:
            root[key] = _merge_part(low, node, slot.default, settings_of(slot))
        else:
            root[key] = _merge(low, node)


_EMPTY_SECTION = "remove the line, or write `null` to leave out what the bases say of it"


def _merge(low: Node | None, high: Node) -> Node:
    """Deep merge of two values; the later one's place stands for a mapping made of both."""
    if low is None or not isinstance(low.value, dict) or not isinstance(high.value, dict):
        return high
    merged = dict(low.value)
    for key, node in high.value.items():
        own = same_key(merged, key)
        merged[own] = _merge(merged.get(own), node)
    return Node(merged, high.origin)


def _merge_part(low: Node | None, high: Node, default: str | None, settings: frozenset[str]) -> Node:
    if low is None or not isinstance(low.value, dict) or not isinstance(high.value, dict):
        return high
    if "name" in high.value and _name(high.value, default) != _name(low.value, default):
        low = Node({key: node for key, node in low.value.items() if key in settings}, low.origin)
    return _merge(low, high)


def _merge_parts(low: Node | None, high: Node, slot: Slot, report: Report) -> Node:
    if not isinstance(high.value, dict):
        return high
    low = as_mapping(low, slot)
    merged = dict(low.value) if low is not None and isinstance(low.value, dict) else {}
    for label, node in high.value.items():
        if node.value is None:
            _remove(merged, label, node, slot, report)
        else:
            merged[label] = _merge_part(merged.get(label), node, slot.part_under(str(label)), settings_of(slot))
    return Node(merged, high.origin)


def _remove(parts: Mapping, label: Key, node: Node, slot: Slot, report: Report) -> None:
    """`label: null`: takes a part away, if that is what was meant."""
    key = f"{slot.section}.{label}"
    if node.empty:
        suggestion = f"write `{label}: {{}}` for no arguments, or `{label}: null` to leave the {slot.kind} out"
        report.problems.append(Problem(str(node.origin), key, "says nothing", suggestion))
    elif parts.pop(label, None) is None and report.complete:
        suggestion = did_you_mean(str(label), map(str, parts)) or f"write `{label}: {{}}` for no arguments"
        report.problems.append(Problem(str(node.origin), key, f"no {slot.kind} of this name to take away", suggestion))


def assign(root: Mapping, path: list[str], leaf: Node, report: Report) -> None:
    """Sets one value by its dotted key, as the command line and the environment do (changed in place).

    The value replaces whatever was there. Sections on the way are made, an index goes into a list. The order
    of assignments of one origin does not matter to a part's arguments: `model.width=2 model.name=mlp` keeps
    the width.
    """
    section, rest = path[0], path[1:]
    slot = SLOTS.get(section)
    if leaf.value is None and not rest and section in TOP_LEVEL:
        root.pop(section, None)
        return
    if slot is not None and slot.form == "many" and rest:
        parts = as_mapping(root.get(section), slot)
        if parts is None:
            parts = Node({}, leaf.origin)
        root[section] = parts
        if isinstance(parts.value, dict):
            if len(rest) == 1 and leaf.value is None:
                _remove(parts.value, rest[0], leaf, slot, report)
                return
            if rest[1:] == ["name"]:
                _switch(parts.value, rest[0], leaf, slot.part_under(rest[0]), settings_of(slot))
    elif slot is not None and slot.kind is not None and rest == ["name"]:
        _switch(root, section, leaf, slot.default, settings_of(slot))
    _set(Node(root, leaf.origin), path, 0, leaf, report)


def _switch(around: Mapping, key: str, name: Node, default: str | None, settings: frozenset[str]) -> None:
    """Drops the arguments that belong to the part named before."""
    part = around.get(key)
    if part is None or not isinstance(part.value, dict) or _name({"name": name}, default) == _name(part.value, default):
        return
    kept: Mapping = {}
    for argument, node in part.value.items():
        if argument in settings:
            kept[argument] = node
        elif (own := _only(node, name.origin)) is not None:
            kept[argument] = own
    around[key] = replace(part, value=kept)


def _only(node: Node, origin: Origin) -> Node | None:
    """What of a value comes from the same kind of origin."""
    if node.origin.kind == origin.kind:
        return node
    if not isinstance(node.value, dict):
        return None
    own: Mapping = {}
    for key, child in node.value.items():
        if (found := _only(child, origin)) is not None:
            own[key] = found
    return replace(node, value=own) if own else None


def _set(node: Node, path: list[str], depth: int, leaf: Node, report: Report) -> None:
    """Sets the value at `path[depth:]` beneath a mapping or list."""
    word, last = path[depth], depth == len(path) - 1
    if isinstance(node.value, list):
        if not word.isdecimal() or int(word) >= len(node.value):
            count = len(node.value)
            what = f"'{word}' is no index into a list of {count}"
            hint = f"an index is 0 to {count - 1}, or give the whole list" if count else "give the whole list"
            report.problems.append(Problem(str(leaf.origin), dotted(path), what, hint))
        elif last:
            node.value[int(word)] = leaf
        else:
            _set(_opened(node.value[int(word)], leaf.origin), path, depth + 1, leaf, report)
    elif isinstance(node.value, dict):
        key = same_key(node.value, word)
        if last:
            node.value[key] = leaf
            return
        child = _opened(node.value.get(key), leaf.origin)
        node.value[key] = child
        _set(child, path, depth + 1, leaf, report)
    else:
        message = f"{dotted(path[:depth])} is a single value ({node.origin}) and has no '{word}'"
        report.problems.append(Problem(str(leaf.origin), dotted(path), message))


def _opened(node: Node | None, origin: Origin) -> Node:
    """The node if it has a value, else an empty mapping to put values into."""
    return Node({}, origin) if node is None or node.value is None else node


def same_key(mapping: Mapping, key: Key) -> Key:
    """The key of a mapping that has the same text (`1` and `"1"`), else the key itself."""
    return next((own for own in mapping if str(own) == str(key)), key) if key not in mapping else key


def as_mapping(node: Node | None, slot: Slot) -> Node | None:
    """A list of names as the mapping that it is short for: `[tensorboard]` is `{tensorboard: {}}`."""
    if node is None or not slot.lists_names or not isinstance(node.value, list):
        return node
    if not all(isinstance(item.value, str) for item in node.value):
        return node
    return Node({str(item.value): Node({}, item.origin) for item in node.value}, node.origin)


def _name(part: Mapping, default: str | None) -> Scalar:
    name = part.get("name")
    if name is None or name.value is None or isinstance(name.value, dict | list):
        return default
    return name.value


@functools.cache
def settings_of(slot: Slot) -> frozenset[str]:
    """The keys of a section that the engine reads itself."""
    cls = settings_class(slot)
    return frozenset() if cls is None else frozenset(field.name for field in fields(cls))


def settings_class(slot: Slot) -> type[Any] | None:
    """The class of the settings that the engine reads in a section."""
    if slot.settings is None:
        return None
    module, _, name = slot.settings.rpartition(".")
    cls: type[Any] = getattr(importlib.import_module(module), name)
    return cls
