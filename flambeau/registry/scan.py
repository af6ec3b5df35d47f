"""Parts found by reading the files of a project and of Flambeau; nothing is imported."""

from __future__ import annotations

import ast
import functools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flambeau.errors import ConfigError, Problem
from flambeau.registry.names import KINDS

_PACKAGE = Path(__file__).resolve().parents[1]
_ROOMS = ("data", "models", "criterions", "metrics", "optim", "callbacks", "tracking", "training")
_NEVER = frozenset({"tests", "node_modules", "site-packages", "__pycache__", "venv", "env"})
_UNLESS_PACKAGE = frozenset({"data", "runs", "build", "dist", "docs", "wandb", "mlruns", "outputs", "checkpoints"})
"""Folders that hold code only if they hold an `__init__.py`."""


_MAY_REGISTER = re.compile(rb"\bregister\b").search
"""Most files are not parsed; `register_buffer` is another word."""


@dataclass(frozen=True)
class Part:
    """A named part and where it is defined; nothing of it is imported."""

    kind: str
    name: str
    module: str
    """Module of the definition, or of the alias statement: `flambeau.models.lenet`."""
    qualname: str
    """Name within the module: `LeNet`; empty for an alias."""
    file: Path
    line: int
    summary: str
    """First line of the docstring; empty for an alias."""
    target: str
    """Import path of the object: `flambeau.models.lenet.LeNet`, `torch.optim.AdamW`."""

    @property
    def place(self) -> str:
        """`file:line`, for messages."""
        return f"{self.file}:{self.line}"


@dataclass
class Scan:
    """What reading the files of a project and of Flambeau found."""

    parts: dict[tuple[str, str], Part] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    """Two parts of one name, names that are not literals."""
    unreadable: list[str] = field(default_factory=list)
    """`file:line: reason` of files that may hold parts but are not valid Python."""


def find_parts(project_root: Path | None = None) -> dict[tuple[str, str], Part]:
    """All parts by (kind, name): Flambeau's own and the project's, which shadow them.

    Raises:
        ConfigError: two parts of the project have one name, or a name is not a string literal.
    """
    scan = scan_parts(project_root)
    if scan.problems:
        raise ConfigError(scan.problems)
    return scan.parts


def scan_parts(project_root: Path | None = None) -> Scan:
    """Read the files of Flambeau and of the project for registered parts; imports and raises nothing."""
    scan = Scan()
    for room in _ROOMS:
        for file in _python_files(_PACKAGE / room):
            _add_file(scan, file, _PACKAGE.parent)
    if project_root is not None:
        root = project_root.resolve()
        bases = import_roots(root)
        own = Scan()
        for file in _python_files(root):
            _add_file(own, file, next(base for base in reversed(bases) if file.is_relative_to(base)))
        scan.parts.update(own.parts)
        scan.problems += own.problems
        scan.unreadable += own.unreadable
    return scan


def import_roots(project_root: Path) -> list[Path]:
    """Folders that a project's modules are imported from: its root, and `src/` where that is no package."""
    source = project_root / "src"
    has_source = source.is_dir() and not (source / "__init__.py").exists()
    return [project_root, source] if has_source else [project_root]


def _python_files(folder: Path) -> Iterator[Path]:
    """Python files below `folder`, in order.

    Passed over: hidden folders, environments, tests, results. Under two folders in a row without any Python
    file nothing is looked for: those are a data set's folders, and there may be millions of files in them.
    """
    pending = [(folder, 0)]
    while pending:
        path, barren = pending.pop()
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError:
            continue
        names = {entry.name for entry in entries}
        if "pyvenv.cfg" in names:
            continue
        files = [Path(entry.path) for entry in entries if entry.name.endswith(".py") and entry.is_file()]
        yield from files
        barren = 0 if files else barren + 1
        if barren > 2:
            continue
        for entry in reversed(entries):
            name = entry.name
            if name.startswith(".") or name in _NEVER or not entry.is_dir(follow_symlinks=False):
                continue
            child = Path(entry.path)
            if child != _PACKAGE and (name not in _UNLESS_PACKAGE or (child / "__init__.py").exists()):
                pending.append((child, barren))


def _add_file(scan: Scan, file: Path, base: Path) -> None:
    try:
        stat = file.stat()
        found = _read_file(file, base, stat.st_mtime_ns, stat.st_size)
    except SyntaxError as error:
        scan.unreadable.append(f"{file}:{error.lineno or 1}: {error.msg}")
        return
    except (OSError, ValueError) as error:
        scan.unreadable.append(f"{file}: {error}")
        return
    scan.problems += found.problems
    for key, part in found.parts.items():
        other = scan.parts.setdefault(key, part)
        if other is not part:
            message = f"the {part.kind} {part.name!r} is registered here and at {other.place}"
            scan.problems.append(Problem(part.place, "", message, "give one of them another name"))


@functools.lru_cache(maxsize=4096)
def _read_file(file: Path, base: Path, modified: int, size: int) -> Scan:
    """The parts that one file registers; kept in memory until the file changes."""
    found = Scan()
    content = file.read_bytes()
    if not _MAY_REGISTER(content):
        return found
    tree = parse(str(file), modified, size)
    registers = _names_of_register(tree)
    if not registers:
        return found
    parts = list(file.relative_to(base).with_suffix("").parts)
    if not all(part.isidentifier() for part in parts):
        raise ValueError("not importable, as its path is not made of identifiers")
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    for node in _statements(tree.body):
        for call, kind in _registrations(node, registers):
            place = f"{file}:{call.lineno}"
            literals = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
            texts = [value for value in literals if isinstance(value, str)]
            if kind == "alias":
                if len(texts) != 3 or texts[0] not in KINDS:
                    message = "register.alias takes a kind, a name and an import path, as literals"
                    found.problems.append(Problem(place, "", message))
                    continue
                part = Part(texts[0], texts[1], module, "", file, call.lineno, "", texts[2])
            elif len(texts) != 1 or not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                message = f"@register.{kind} takes one name, as a literal, so that it is found without importing"
                found.problems.append(Problem(place, "", message))
                continue
            else:
                summary = (ast.get_docstring(node) or "").strip().split("\n", 1)[0]
                target = f"{module}.{node.name}"
                part = Part(kind, texts[0], module, node.name, file, node.lineno, summary, target)
            other = found.parts.setdefault((part.kind, part.name), part)
            if other is not part:
                message = f"the {part.kind} {part.name!r} is registered here and in line {other.line}"
                found.problems.append(Problem(place, "", message, "give one of them another name"))
    return found


@functools.lru_cache(maxsize=512)
def parse(file: str, modified: int, size: int) -> ast.Module:
    """The syntax tree of a file; kept in memory until the file changes.

    Raises:
        SyntaxError: it is not valid Python.
        ValueError: it holds null bytes.
    """
    return ast.parse(Path(file).read_bytes(), filename=file)


def _names_of_register(tree: ast.Module) -> set[str]:
    """The expressions that mean `flambeau.register` in a file, as source text."""
    names = set()
    for node in _statements(tree.body):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "flambeau"):
            names |= {item.asname or item.name for item in node.names if item.name == "register"}
        elif isinstance(node, ast.Import):
            for item in node.names:
                if item.name in ("flambeau", "flambeau.registry"):
                    names.add(f"{item.asname or item.name}.register")
    return names


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported, those under `if` and `try` included."""
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            yield from _statements([*node.body, *node.orelse])
            for handler in getattr(node, "handlers", ()):
                yield from _statements(handler.body)


def _registrations(node: ast.stmt, registers: set[str]) -> Iterator[tuple[ast.Call, str]]:
    """Calls of `register.<kind>(...)` in a decorator or a statement, with the kind (or `alias`)."""
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        calls: list[ast.expr] = node.decorator_list
    elif isinstance(node, ast.Expr):
        # register.model("x")(Class): the registering call is within another; reported, as it cannot be read
        outer = node.value.func if isinstance(node.value, ast.Call) else None
        calls = [outer if isinstance(outer, ast.Call) else node.value]
    else:
        return
    for call in calls:
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            kind = call.func.attr
            if (kind in KINDS or kind == "alias") and ast.unparse(call.func.value) in registers:
                yield call, kind
