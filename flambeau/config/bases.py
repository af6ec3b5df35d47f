"""A configuration's files: finding one by name, and the files that it inherits from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from flambeau.config.nearest import did_you_mean
from flambeau.config.origin import Node, shown
from flambeau.config.project import SUFFIXES, Project
from flambeau.config.yaml import read_file
from flambeau.errors import Problem


@dataclass
class Files:
    """The files of one configuration in the order in which they apply: bases first, the named file last."""

    name: str = ""
    """The name of the configuration: `lenet`, or `lenet+wide` of two files that were named together."""
    layers: list[tuple[Path, Node]] = field(default_factory=list)
    complete: bool = True
    """Whether every file was found and read; if not, what seems missing may be in the file that is."""


def find_config(name: str, folders: list[Path], *, other_than: Path | None = None) -> Path | None:
    """The file of a configuration: a path, or a name looked up in the folders in order.

    `other_than` is passed over, so that a project's `lenet.yaml` can inherit from Flambeau's `lenet`.
    """
    path = Path(name)
    is_path = path.suffix in SUFFIXES or path.is_absolute() or name.startswith(("./", "../"))
    candidates = [path] if is_path or len(path.parts) > 1 else []
    for folder in folders:
        candidates += [folder / name] if path.suffix in SUFFIXES else [folder / (name + end) for end in SUFFIXES]
    for candidate in candidates:
        try:
            if candidate.is_file() and not (other_than is not None and candidate.samefile(other_than)):
                return candidate
        except (OSError, ValueError):  # a name that no file can have, or a folder that may not be searched
            continue
    return None


def read_files(name: str, project: Project, problems: list[Problem]) -> Files:
    """Reads a configuration and, first, everything that it inherits from; of `lenet+wide`, one after the other.

    Each file applies once, where it first comes up: what two bases have in common lies below both.
    """
    files = Files()
    folders = project.config_folders
    names = [name] if "+" not in name or find_config(name, folders) is not None else name.split("+")
    found: list[str] = []
    for own in names:
        path = find_config(own, folders)
        if path is None:
            problems.append(
                Problem(own, "", f"no configuration of this name; {_looked(project)}", _nearest(own, project, None))
            )
            files.complete = False
        else:
            found.append(path.stem)
            if not any(path.samefile(other) for other, _ in files.layers):
                _visit(path, project, files, [], problems)
    files.name = "+".join(found)
    return files


def _visit(path: Path, project: Project, files: Files, above: list[Path], problems: list[Problem]) -> None:
    """Adds the bases of a file and then the file; `above` are the files on the way down to it."""
    node = read_file(path, problems)
    if node is None:
        files.complete = False
        return
    assert isinstance(node.value, dict)
    above = [*above, path]
    for entry in _bases(node, problems):
        name = str(entry.value)
        base = find_config(name, [path.parent, *project.config_folders], other_than=path)
        if base is None:
            itself = find_config(name, [path.parent]) is not None
            message = "inherits from itself" if itself else f"no configuration is called '{name}'"
            problems.append(
                Problem(str(entry.origin), "base", message, None if itself else _nearest(name, project, path))
            )
            files.complete = False
        elif any(base.samefile(other) for other in above):
            start = next(index for index, other in enumerate(above) if base.samefile(other))
            circle = " -> ".join(shown(other) for other in [*above[start:], base])
            problems.append(Problem(str(entry.origin), "base", f"the bases go round in a circle: {circle}"))
        elif not any(base.samefile(other) for other, _ in files.layers):
            _visit(base, project, files, above, problems)
    files.layers.append((path, node))


def _bases(node: Node, problems: list[Problem]) -> list[Node]:
    """Takes `base:` out of a file's mapping: the names in it."""
    assert isinstance(node.value, dict)
    base = node.value.pop("base", None)
    if base is None or base.value is None:
        return []
    entries = base.value if isinstance(base.value, list) else [base]
    hint = "e.g. `base: [default]`"
    problems += [
        Problem(str(entry.origin), "base", "is a name or a list of names", hint)
        for entry in entries
        if not isinstance(entry.value, str)
    ]
    return [entry for entry in entries if isinstance(entry.value, str)]


def _nearest(name: str, project: Project, path: Path | None) -> str | None:
    names = project.config_names()
    if path is not None:
        names += [other.stem for other in path.parent.iterdir() if other.suffix in SUFFIXES and other != path]
    if found := did_you_mean(name, names):
        return found
    return f"there are {', '.join(sorted(set(names)))}" if 0 < len(set(names)) <= 12 else None


def _looked(project: Project) -> str:
    return f"looked in {shown(project.config_folders[0])} and among Flambeau's own"
