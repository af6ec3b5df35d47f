"""Show a configuration as it will be used, each value with where it comes from.

  flambeau config lenet
  flambeau config lenet optimizer.lr=3e-4 --json
  flambeau config --schema > configs/schema.json

Defaults are shown too. Values of secrets are not.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flambeau.config.project import find_project
from flambeau.console import console, is_terminal
from flambeau.errors import EXIT_DONE, UsageError

if TYPE_CHECKING:
    from flambeau.config.load import Config

HELP = "show a resolved configuration and where each value comes from"

_WIDEST = 60  # columns of values beyond which origins are no longer lined up


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="a name in configs/, or a YAML file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings, e.g. optimizer.lr=3e-4")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    parser.add_argument(
        "--schema",
        action="store_true",
        help="instead, the JSON schema of configurations, for editors",
    )


def run(args: argparse.Namespace) -> int:
    """Show a configuration, or the schema."""
    if args.schema:
        from flambeau.config.schema import json_schema

        print(json.dumps(json_schema(find_project()), indent=2))
        return EXIT_DONE
    if args.config is None:
        names = ", ".join(find_project().config_names())
        raise UsageError("which configuration?", remedy=f"there are: {names}" if names else None)

    from flambeau.config.load import load_config

    config = load_config(args.config, args.overrides)
    if args.json:
        print(json.dumps(as_json(config), indent=2))
    else:
        _print(list(tree(config)))
    return EXIT_DONE


@dataclass(frozen=True)
class Line:
    """One line of the tree."""

    text: str
    origin: str
    is_default: bool = False


def tree(config: Config) -> Iterator[Line]:
    """The resolved configuration line by line, in the order of the sections; defaults after what was set."""
    from flambeau.config.slots import GENERAL, SLOTS

    defaults = _defaults(config)
    for key in (*GENERAL, *SLOTS):
        if key not in config.values and defaults.get(key) in (None, {}):
            continue
        yield from _lines(config, (key,), config.values.get(key), defaults.get(key), "")


def _lines(config: Config, path: tuple[Any, ...], value: Any, default: Any, indent: str) -> Iterator[Line]:
    """A value that was set (or a section of nothing but defaults) under its key."""
    from flambeau.config.origin import dotted
    from flambeau.config.writing import write_inline

    name = dotted(path)
    label = f"{indent}{write_inline(path[-1])}:"
    origin = str(config.origins.get(name, "default"))
    if name in config.texts:
        yield Line(f"{label} {write_inline(config.texts[name])}", origin + _meaning(config, name))
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
            yield Line(f"{indent}  - {write_inline(_hidden(config, (*path, index), item))}", place)
    elif name not in config.origins and isinstance(default, Mapping):
        yield Line(label, "default", is_default=True)
        for key, child in default.items():
            yield _default_line(key, child, indent)
    elif name not in config.origins:
        yield Line(f"{label} {_default_text(default)}", "default", is_default=True)
    else:
        yield Line(f"{label} {write_inline(_hidden(config, path, value))}", origin)


def _default_line(key: str, value: Any, indent: str) -> Line:
    return Line(f"{indent}  {key}: {_default_text(value)}", "default", is_default=True)


def _default_text(default: Any) -> str:
    from flambeau.config.signature import Code
    from flambeau.config.writing import write_inline

    return str(default) if isinstance(default, Code) else write_inline(_plain(default))


def _plain(value: Any) -> Any:
    """A default as the configuration would state it: a tuple is a list."""
    if isinstance(value, tuple | list | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _defaults(config: Config) -> dict[str, Any]:
    """The defaults of every section, those of metrics and the like by label."""
    from flambeau.config.catalog import Catalog
    from flambeau.config.defaults import Defaults
    from flambeau.config.slots import SLOTS

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
    from flambeau.config.start_points import is_single

    if not isinstance(section, Mapping):
        return {}
    return defaults if is_single(section) else {label: defaults for label, part in section.items() if part}


def _meaning(config: Config, name: str) -> str:
    """What a text from the environment stands for, unless that may be a secret or is not known yet."""
    from flambeau.config.secrets import is_secret
    from flambeau.config.writing import write_inline

    if name in config.deferred:
        return ", known when the data is built"
    references = re.findall(r"\$\{\s*(env:)?([\w.]+)", config.texts[name])
    if is_secret(name) or any(not variable or is_secret(word) for variable, word in references):
        return ""  # what another key holds may be a secret in its turn
    value: Any = config.values
    for word in name.split("."):
        value = value[int(word)] if isinstance(value, list) else value[word]
    return f", now {write_inline(value)}"


def _hidden(config: Config, path: tuple[Any, ...], value: Any) -> Any:
    """A value without what it holds of secrets and of the environment."""
    from flambeau.config.origin import dotted
    from flambeau.config.secrets import is_secret

    name = dotted(path)
    if name in config.texts:
        return config.texts[name]
    if isinstance(value, Mapping):
        return {key: _hidden(config, (*path, key), child) for key, child in value.items()}
    if isinstance(value, list):
        return [_hidden(config, (*path, index), child) for index, child in enumerate(value)]
    return "***" if isinstance(value, str) and is_secret(name) else value


def as_json(config: Config) -> dict[str, Any]:
    """The configuration for programs: what was set, the defaults beside it, and the origins by dotted key."""
    return {
        "config": config.name,
        "sources": [str(path) for path in config.sources],
        "values": _finite(_hidden(config, (), config.values)),
        "defaults": _finite(_plain(_defaults(config))),
        "origins": {key: {"kind": origin.kind, "place": origin.place} for key, origin in config.origins.items()},
    }


def _finite(value: Any) -> Any:
    """Numbers that JSON does not have, as YAML writes them: `.inf`, `.nan`."""
    from flambeau.config.writing import write_inline

    if isinstance(value, Mapping):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_finite(child) for child in value]
    return write_inline(value) if isinstance(value, float) and not math.isfinite(value) else value


def _print(lines: list[Line]) -> None:
    width = max([len(line.text) for line in lines if len(line.text) <= _WIDEST], default=0)
    if not is_terminal():
        sys.stdout.writelines(f"{line.text:<{width}}  # {line.origin}\n" for line in lines)
        return
    from rich.text import Text

    for line in lines:
        text = Text(f"{line.text:<{width}}  ", style="dim" if line.is_default else "")
        console().print(text.append(line.origin, style="dim" if line.is_default else "cyan"))
