"""All layers of a configuration in one tree: files, then the environment, then the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flambeau.config.bases import read_files
from flambeau.config.merge import Report, assign, merge_file, same_key
from flambeau.config.origin import COMMAND_LINE, Key, Node, Origin
from flambeau.config.project import Project
from flambeau.config.yaml import read_value
from flambeau.errors import Problem

PREFIX = "FLAMBEAU__"
"""Variables of the environment that begin so are settings: `FLAMBEAU__OPTIMIZER__LR=3e-4`."""


@dataclass
class Composed:
    """The layers of a configuration in one tree, references not yet followed."""

    name: str
    root: dict[Key, Node]
    sources: list[Path]
    complete: bool
    """False if a file is missing or unreadable: what seems to be missing may stand there."""


def compose(
    name: str, overrides: Sequence[str], environ: Mapping[str, str], project: Project, problems: list[Problem]
) -> Composed:
    """Reads every layer and merges them; what is wrong is added to `problems`."""
    files = read_files(name, project, problems)
    root: dict[Key, Node] = {}
    report = Report(problems, files.complete)
    for _, node in files.layers:
        assert isinstance(node.value, dict)
        merge_file(root, node.value, report)
    for variable in sorted(key for key in environ if key.startswith(PREFIX)):
        path = _path_of(variable, root)
        _apply(root, path, environ[variable], Origin("environment", variable), report)
    for override in overrides:
        _override(root, override, report)
    return Composed(files.name, root, [path for path, _ in files.layers], files.complete)


def _override(root: dict[Key, Node], override: str, report: Report) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        hint = "write `key=value`, e.g. `optimizer.lr=3e-4`"
        report.problems.append(Problem(str(COMMAND_LINE), override, "is no setting", hint))
    elif key.endswith("+"):
        hint = f"give the whole list: `{key[:-1]}=[...]`"
        report.problems.append(Problem(str(COMMAND_LINE), key[:-1], "lists are not added to", hint))
    else:
        _apply(root, key.split("."), text, COMMAND_LINE, report)


def _apply(root: dict[Key, Node], path: list[str], text: str, origin: Origin, report: Report) -> None:
    key = ".".join(path)
    if not all(path):
        report.problems.append(Problem(str(origin), key, "is no dotted key", "e.g. `optimizer.lr`"))
    elif path[0] == "base":
        report.problems.append(Problem(str(origin), key, "can only be set in a file"))
    elif (leaf := read_value(text, origin, key, report.problems)) is not None:
        assign(root, path, leaf, report)


def _path_of(variable: str, root: dict[Key, Node]) -> list[str]:
    """`FLAMBEAU__SCHEDULER__T_MAX` as the key it means.

    A word in capitals is the key of that spelling in any case if there is one, else in small letters; a word
    with small letters is taken as it is.
    """
    path: list[str] = []
    here: object = root
    for word in variable.removeprefix(PREFIX).split("__"):
        key: Key = word
        if isinstance(here, dict):
            if word.isupper():
                key = next((own for own in here if str(own).upper() == word), word.lower())
            key = same_key(here, key)
            child = here.get(key)
            here = child.value if child is not None else None
        elif isinstance(here, list) and word.isdecimal() and int(word) < len(here):
            here = here[int(word)].value
        else:
            key, here = word.lower() if word.isupper() else word, None
        path.append(str(key))
    return path
