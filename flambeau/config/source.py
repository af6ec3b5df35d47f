"""Python read as text: where a module lies, what a name in it means. Nothing is imported.

The rules are Python's own (search path, re-exports, star imports, aliases), as far as they can be followed
without running code; where they cannot, the answer is :class:`Unknown` and never a guess.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib.machinery
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flambeau.registry.scan import parse

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Unknown:
    """Something that exists or may exist, but cannot be read: compiled, computed, or of an absent package."""

    dotted: str


@dataclass(frozen=True)
class Missing:
    """Something that is not there."""

    dotted: str
    """The first part of the path that does not exist."""
    package: str | None = None
    """The top-level package, if it is the one that is not installed."""
    near: tuple[str, ...] = ()
    """What is there instead."""


@dataclass(frozen=True, eq=False)
class Definition:
    """A class or function in a module."""

    module: Module
    node: ast.ClassDef | FunctionNode
    owner: ast.ClassDef | None = None
    """The class of a method."""

    @property
    def dotted(self) -> str:
        """Import path of the definition itself, not of a re-export."""
        owner = f"{self.owner.name}." if self.owner else ""
        return f"{self.module.name}.{owner}{self.node.name}"


@dataclass(frozen=True, eq=False)
class Assigned:
    """A name given to an expression: `Size = Union[int, tuple[int, int]]`."""

    module: Module
    value: ast.expr


Entity = Definition | Assigned | Unknown | Missing
Binding = ast.ClassDef | FunctionNode | ast.expr | str
"""What a name is bound to in a module; text is the dotted path of an import."""


@dataclass(eq=False)
class Module:
    """A module's text and what its names are bound to."""

    name: str
    file: Path
    folders: list[str] | None
    """Where its submodules lie, if it is a package."""
    tree: ast.Module
    names: dict[str, Binding] = field(init=False)
    stars: list[str] = field(init=False)
    """Modules of `from module import *`, in order."""

    def __post_init__(self) -> None:
        self.names, self.stars = {}, []
        later: dict[str, Binding] = {}
        self._bind(self.tree.body, later)
        self.names = later | self.names

    def _bind(self, body: Sequence[ast.stmt], later: dict[str, Binding], fallback: bool = False) -> None:
        """`later` takes the bindings of `else` and `except`, and those for type checkers only."""
        for node in body:
            if isinstance(node, ast.If):
                self._bind(node.body, later, fallback or "TYPE_CHECKING" in ast.unparse(node.test))
                self._bind(node.orelse, later, True)
            elif isinstance(node, ast.Try):
                self._bind([*node.body, *node.orelse], later, fallback)
                for handler in node.handlers:
                    self._bind(handler.body, later, True)
            else:
                for name, binding in self._bindings(node):
                    if not fallback:
                        self.names[name] = binding
                    else:
                        later.setdefault(name, binding)

    def _bindings(self, node: ast.stmt) -> Iterator[tuple[str, Binding]]:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if not is_overload(node):
                yield node.name, node
        elif isinstance(node, ast.Import):
            for item in node.names:
                yield (item.asname, item.name) if item.asname else (item.name.split(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom):
            origin = self._origin(node)
            for item in node.names:
                if item.name == "*":
                    self.stars.append(origin)
                else:
                    yield item.asname or item.name, f"{origin}.{item.name}"
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None and isinstance(node.target, ast.Name):
            yield node.target.id, node.value

    def _origin(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        upward = node.level - (1 if self.folders is not None else 0)
        base = parts[: len(parts) - upward] if upward else parts
        return ".".join([*base, *([node.module] if node.module else [])])


def is_overload(node: ast.stmt) -> bool:
    """Whether a function is one of the typed variants before the real one."""
    decorators = getattr(node, "decorator_list", [])
    return any(name_of(decorator).rpartition(".")[2] == "overload" for decorator in decorators)


def name_of(node: ast.expr) -> str:
    """The dotted name of an expression, without call and subscript; empty if it has none."""
    while isinstance(node, (ast.Call, ast.Subscript)):
        node = node.func if isinstance(node, ast.Call) else node.value
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


class Source:
    """Reads modules found along a search path (default: Python's own)."""

    def __init__(self, search: Sequence[Path] = ()) -> None:
        self.search = [*map(str, search), *sys.path]
        self.own = len(search)
        self._modules: dict[str, Module | None] = {}
        self._specs: dict[str, importlib.machinery.ModuleSpec | None] = {}

    def spec(self, name: str) -> importlib.machinery.ModuleSpec | None:
        """Where a module lies; None if there is none. Parent packages are not imported."""
        if name not in self._specs:
            parent, _, _ = name.rpartition(".")
            if parent:
                above = self.spec(parent)
                folders = above.submodule_search_locations if above else None
                found = importlib.machinery.PathFinder.find_spec(name, list(folders)) if folders else None
                found = found or self._hidden(name)
            else:
                found = importlib.machinery.PathFinder.find_spec(name, self.search) or _other_finders(name)
            self._specs[name] = found
        return self._specs[name]

    def _hidden(self, name: str) -> importlib.machinery.ModuleSpec | None:
        """A project's module in a folder without `__init__.py` that an installed package hides by its name."""
        for root in self.search[: self.own]:
            file = Path(root, *name.split(".")).with_suffix(".py")
            if file.is_file():
                return importlib.util.spec_from_file_location(name, file)
        return None

    def module(self, name: str) -> Module | None:
        """A module's contents; None if there is none, or none in Python."""
        if name not in self._modules:
            spec = self.spec(name)
            self._modules[name] = None
            if spec is not None and spec.origin and spec.origin.endswith(".py"):
                folders = spec.submodule_search_locations
                tree = _parse(spec.origin)
                if tree is not None:
                    self._modules[name] = Module(
                        name, Path(spec.origin), list(folders) if folders is not None else None, tree
                    )
        return self._modules[name]

    def resolve(self, dotted: str, depth: int = 0) -> Entity:
        """What an import path names, re-exports and aliases followed."""
        if depth > 20:
            return Unknown(dotted)
        names = dotted.split(".")
        if self.spec(names[0]) is None:
            if names[0] in sys.builtin_module_names:
                return Unknown(dotted)
            return Missing(names[0], package=names[0], near=_modules_in(self.search[: self.own]))
        path, rest = names[0], names[1:]
        while rest:
            below = f"{path}.{rest[0]}"
            # For the last name an attribute goes before a submodule, as in an imported package.
            module = self.module(path) if len(rest) == 1 else None
            if module is not None and rest[0] in module.names:
                break
            if self.spec(below) is None:
                break
            path, rest = below, rest[1:]
        if not rest:
            return Unknown(dotted)  # a module is no part
        module = self.module(path)
        if module is None:
            spec = self.spec(path)
            folders = spec.submodule_search_locations if spec and spec.origin is None else None
            # A folder without __init__.py has nothing but its modules; a compiled module may have anything.
            return Missing(f"{path}.{rest[0]}", near=_modules_in(folders)) if folders else Unknown(dotted)
        entity = self.lookup(module, rest[0], depth + 1)
        for name in rest[1:]:
            if not isinstance(entity, Definition) or not isinstance(entity.node, ast.ClassDef):
                return entity if isinstance(entity, Missing) else Unknown(dotted)
            entity = self.method(entity, name) or Unknown(dotted)
        return entity

    def lookup(self, module: Module, name: str, depth: int = 0) -> Entity:
        """What `name` means in a module."""
        dotted = f"{module.name}.{name}"
        if depth > 20:
            return Unknown(dotted)
        binding = module.names.get(name)
        if binding is None:
            for star in reversed(module.stars):
                found = self._through_star(star, name, depth)
                if found is not None:
                    return found
            if "__getattr__" in module.names or self.spec(dotted) is not None or _fills_itself(module):
                return Unknown(dotted)
            return Missing(dotted, near=(*self.public_names(module), *_modules_in(module.folders or ())))
        return self.follow(module, binding, depth)

    def follow(self, module: Module, binding: Binding, depth: int = 0) -> Entity:
        """What a binding of a module leads to."""
        if isinstance(binding, str):
            found = self.resolve(binding, depth + 1)
            return Unknown(binding) if isinstance(found, Missing) else found
        if isinstance(binding, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            return Definition(module, binding)
        if isinstance(binding, (ast.Name, ast.Attribute)) and (dotted := self.qualify(module, binding)):
            return self.resolve(dotted, depth + 1)
        return Assigned(module, binding)

    def qualify(self, module: Module, node: ast.expr) -> str | None:
        """The import path that a name or attribute in a module stands for, one step of imports followed."""
        dotted = name_of(node)
        first, _, rest = dotted.partition(".")
        binding = module.names.get(first)
        if isinstance(binding, str):
            first = binding
        elif binding is not None or any(self._through_star(star, first, 1) for star in module.stars):
            first = f"{module.name}.{first}"
        elif hasattr(builtins, first):
            return dotted
        else:
            return None
        return f"{first}.{rest}" if rest else first

    def public_names(self, module: Module) -> list[str]:
        """The names that a module offers, star imports included."""
        names = [name for name in module.names if not name.startswith("_")]
        for star in module.stars:
            below = self.module(star)
            names += self.public_names(below) if below is not None and below is not module else []
        return names

    def method(self, owner: Definition, name: str) -> Definition | None:
        """A function in the body of a class."""
        assert isinstance(owner.node, ast.ClassDef)
        found = class_functions(owner.node).get(name)
        return Definition(owner.module, found, owner.node) if found is not None else None

    def _through_star(self, star: str, name: str, depth: int) -> Entity | None:
        spec = self.spec(star)
        if spec is None or not str(spec.origin).endswith(".py") or name.startswith("_") or depth > 20:
            return None
        # Most star imports are of other names: a file in which the name does not occur is not parsed, unless
        # it hands on stars itself.
        content = _read(str(spec.origin))
        if name.encode() not in content and b"import *" not in content:
            return None
        module = self.module(star)
        found = self.lookup(module, name, depth + 1) if module is not None else None
        return None if isinstance(found, (Missing, Unknown)) else found


def class_functions(node: ast.ClassDef) -> dict[str, FunctionNode]:
    """The functions in a class's body, those under `if` included, by name."""
    found: dict[str, FunctionNode] = {}
    pending: list[ast.stmt] = list(node.body)
    while pending:
        item = pending.pop(0)
        if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef)) and not is_overload(item):
            found[item.name] = item
        elif isinstance(item, ast.If):
            pending[:0] = [*item.orelse, *item.body]
    return found


def _fills_itself(module: Module) -> bool:
    """Whether a module adds names to itself as it runs."""
    for node in ast.walk(module.tree):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        if name in ("globals", "setattr", "modules"):
            return True
    return False


def _modules_in(folders: Iterable[str]) -> tuple[str, ...]:
    """The modules and packages that lie in folders, by name."""
    entries = [entry for folder in folders if Path(folder).is_dir() for entry in Path(folder).iterdir()]
    names = {entry.stem for entry in entries if entry.suffix == ".py" or entry.is_dir()}
    return tuple(sorted(name for name in names if name.isidentifier() and not name.startswith("_")))


def _other_finders(name: str) -> importlib.machinery.ModuleSpec | None:
    """Top-level packages that lie on no path, such as editable installations."""
    import importlib.util

    if name in sys.modules and getattr(sys.modules[name], "__spec__", None) is None:
        return None
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def _read(file: str) -> bytes:
    stat = Path(file).stat()
    return _read_version(file, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=512)
def _read_version(file: str, _modified: int, _size: int) -> bytes:
    return Path(file).read_bytes()


def _parse(file: str) -> ast.Module | None:
    try:
        stat = Path(file).stat()
        return parse(file, stat.st_mtime_ns, stat.st_size)
    except (OSError, SyntaxError, ValueError):
        return None
