"""A configuration for people to read: line by line, each value with its origin, none of a secret."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flambeau.config.catalog import Catalog
from flambeau.config.defaults import Defaults
from flambeau.config.load import Config
from flambeau.config.origin import dotted
from flambeau.config.scaling import scaling_of
from flambeau.config.secrets import is_secret
from flambeau.config.signature import Code
from flambeau.config.slots import GENERAL, SLOTS
from flambeau.config.start_points import is_single
from flambeau.config.writing import write_inline


@dataclass(frozen=True)
class Line:
    """One line of the tree."""

    text: str
    origin: str
    is_default: bool = False
    key: str = ""
    """The dotted key whose value the line states."""


def tree(config: Config) -> Iterator[Line]:
    """The resolved configuration line by line, in the order of the sections; defaults after what was set."""
    defaults = defaults_of(config)
    for key in (*GENERAL, *SLOTS):
        if key not in config.values and defaults.get(key) in (None, {}):
            continue
        yield from _lines(config, (key,), config.values.get(key), defaults.get(key), "")


def _lines(config: Config, path: tuple[Any, ...], value: Any, default: Any, indent: str) -> Iterator[Line]:
    """A value that was set (or a section of nothing but defaults) under its key."""
    name = dotted(path)
    label = f"{indent}{write_inline(path[-1])}:"
    origin = str(config.origins.get(name, "default"))
    if name in config.shown_texts:
        yield Line(f"{label} {write_inline(config.shown_texts[name])}", origin + _meaning(config, name), key=name)
    elif isinstance(value, Mapping) and (value or isinstance(default, Mapping)):
        yield Line(label, origin)
        known = default if isinstance(default, Mapping) else {}
        unset = {key: child for key, child in known.items() if key not in value}
        if "name" in unset:
            yield _default_line("name", unset.pop("name"), indent)
        for key, child in value.items():
            yield from _lines(config, (*path, key), child, known.get(key), indent + "  ")
        for key, child in unset.items():
            yield _default_line(key, child, indent)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        yield Line(label, origin)
        for index, item in enumerate(value):
            place = str(config.origins.get(dotted((*path, index)), origin))
            yield Line(f"{indent}  - {write_inline(hidden(config, (*path, index), item))}", place)
    elif name not in config.origins and isinstance(default, Mapping):
        yield Line(label, "default", is_default=True)
        for key, child in default.items():
            yield _default_line(key, child, indent)
    elif name not in config.origins:
        yield Line(f"{label} {_default_text(default)}", "default", is_default=True)
    else:
        yield Line(f"{label} {write_inline(hidden(config, path, value))}", origin + _scaled(config, name), key=name)


def _default_line(key: str, value: Any, indent: str) -> Line:
    return Line(f"{indent}  {key}: {_default_text(value)}", "default", is_default=True)


def _default_text(default: Any) -> str:
    return str(default) if isinstance(default, Code) else write_inline(plain_default(default))


def plain_default(value: Any) -> Any:
    """A default as the configuration would state it: a tuple is a list."""
    if isinstance(value, tuple | list | set | frozenset):
        return [plain_default(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain_default(item) for key, item in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def defaults_of(config: Config) -> dict[str, Any]:
    """The defaults of every section, those of metrics and the like by label."""
    defaults = Defaults(config.values, Catalog(config.project.root))
    known: dict[str, Any] = defaults.of("")
    for key, slot in SLOTS.items():
        if slot.repeats:
            known[key] = _repeated(config.values.get(key), defaults.of(key))
        elif slot.form == "one":
            known[key] = defaults.of(key)
        elif isinstance(config.values.get(key), Mapping):
            known[key] = {label: defaults.of(key, str(label)) for label in config.values[key]}
    return known


def _repeated(section: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    """The defaults of a section that may hold its settings once, or several times by label."""
    if not isinstance(section, Mapping):
        return {}
    return defaults if is_single(section) else {label: defaults for label, part in section.items() if part}


def _scaled(config: Config, name: str) -> str:
    """The learning rate that is used in place of the written one, where it is scaled to the batch."""
    scaling = scaling_of(config) if name == "optimizer.lr" else None
    return f", in use: {scaling}" if scaling is not None else ""


def _meaning(config: Config, name: str) -> str:
    """What a text from the environment stands for, unless that may be a secret or is not known yet."""
    if name in config.deferred:
        return ", known when the data is built"
    references = re.findall(r"\$\{\s*(env:)?([\w.]+)", config.shown_texts[name])
    if is_secret(name) or any(not variable or is_secret(word) for variable, word in references):
        return ""  # what another key holds may be a secret in its turn
    value: Any = config.values
    for word in name.split("."):
        value = value[int(word)] if isinstance(value, list) else value[word]
    return f", now {write_inline(value)}"


def hidden(config: Config, path: tuple[Any, ...], value: Any) -> Any:
    """A value without what it holds of secrets and of the environment."""
    name = dotted(path)
    if name in config.shown_texts:
        return config.shown_texts[name]
    if isinstance(value, Mapping):
        return {key: hidden(config, (*path, key), child) for key, child in value.items()}
    if isinstance(value, list):
        return [hidden(config, (*path, index), child) for index, child in enumerate(value)]
    return "***" if isinstance(value, str) and is_secret(name) else value
