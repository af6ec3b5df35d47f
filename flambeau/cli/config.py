"""Show a configuration as it will be used, each value with where it comes from.

  flambeau config lenet
  flambeau config lenet optimizer.lr=3e-4 --json
  flambeau config lenet --diff resnet
  flambeau config --schema > configs/schema.json

Defaults are shown too. Values of secrets are not.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flambeau.cli.settings import add_bindings, overrides_of
from flambeau.config.project import find_project
from flambeau.console import console, is_terminal, say
from flambeau.errors import EXIT_DONE, UsageError

if TYPE_CHECKING:
    from flambeau.config.load import Config
    from flambeau.config.modifications import Modification
    from flambeau.config.showing import Line

HELP = "show a resolved configuration and where each value comes from"

_STYLES = {"modified": "yellow", "type changed": "bold red", "added": "green", "removed": "red"}
_WIDEST = 60  # columns of values beyond which origins are no longer lined up


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="a name in configs/, or a YAML file; A+B for both")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings, e.g. optimizer.lr=3e-4")
    add_bindings(parser)
    parser.add_argument(
        "--diff",
        metavar="OTHER",
        help="instead, what is other than in OTHER: a configuration's name or file, or a run's folder",
    )
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

    config = load_config(args.config, overrides_of(args))
    if args.diff is not None:
        from flambeau.config.modifications import modifications

        changes = modifications(_load_other(args.diff), config)
        if args.json:
            print(json.dumps([change.as_json() for change in changes], indent=2))
        else:
            _print_differences(changes)
    elif args.json:
        print(json.dumps(as_json(config), indent=2))
    else:
        from flambeau.config.modifications import modifications_of_files
        from flambeau.config.showing import tree

        _print(list(tree(config)), {change.key: change for change in modifications_of_files(config)})
    return EXIT_DONE


def _load_other(name: str) -> Config:
    """A configuration by its name or file, or that of a run."""
    from flambeau.config.load import load_config
    from flambeau.run_folder import RunFolder
    from flambeau.run_folder.saved_config import load_saved_config

    folder = Path(name)
    return load_saved_config(RunFolder.open(folder)) if folder.is_dir() else load_config(name)


def as_json(config: Config) -> dict[str, Any]:
    """The configuration for programs: what was set, the defaults beside it, and the origins by dotted key."""
    from flambeau.config.showing import defaults_of, hidden, plain_default

    return {
        "config": config.name,
        "sources": [str(path) for path in config.sources],
        "values": _finite(hidden(config, (), config.values)),
        "defaults": _finite(plain_default(defaults_of(config))),
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


def _print(lines: Sequence[Line], changes: Mapping[str, Modification]) -> None:
    width = max([len(line.text) for line in lines if len(line.text) <= _WIDEST], default=0)
    if not is_terminal():
        sys.stdout.writelines(f"{line.text:<{width}}  # {line.origin}{_was(line, changes)}\n" for line in lines)
        return
    from rich.text import Text

    for line in lines:
        style = _STYLES[changes[line.key].kind] if line.key in changes else "dim" if line.is_default else ""
        text = Text(f"{line.text:<{width}}  ", style=style)
        text.append(line.origin, style="dim" if line.is_default else "cyan")
        console().print(text.append(_was(line, changes), style=style))


def _was(line: Line, changes: Mapping[str, Modification]) -> str:
    return f", {changes[line.key].note}" if line.key in changes else ""


def _print_differences(changes: Sequence[Modification]) -> None:
    if not changes:
        say("no differences")
    for change in changes:
        if is_terminal():
            from rich.text import Text

            console().print(Text(str(change), style=_STYLES[change.kind]))
        else:
            print(change)
