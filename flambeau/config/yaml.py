"""Reading YAML: one file or one value, safely, with the line of everything.

The syntax is PyYAML's (its C parser where there is one); the meaning of plain scalars is the core schema of
YAML 1.2 (https://yaml.org/spec/1.2.2/, section 10.3), so that `1e-3` is a number and `no`, `on` and `12:30`
are text. Only plain data can be written: a tag that would make an object is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from flambeau.config.origin import Key, Node, Origin, Scalar, dotted, shown
from flambeau.errors import Problem

MAX_DEPTH = 64
MAX_NODES = 100_000  # far beyond any real file; aliases can make a short file grow without bound

TAG = "tag:yaml.org,2002:"
CORE: list[tuple[str, re.Pattern[str]]] = [
    ("null", re.compile(r"(?:~|null|Null|NULL|)\Z")),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")),
    ("int", re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")),
    (
        "float",
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?(?:\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN)\Z"
        ),
    ),
]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the base is chosen at run time
    yaml_implicit_resolvers: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _name, _pattern in CORE:
    _Loader.add_implicit_resolver(TAG + _name, _pattern, None)


class _Fault(Exception):
    """A place in a document that cannot be read."""

    def __init__(self, node: Any, path: tuple[Key, ...], message: str, suggestion: str | None = None) -> None:
        super().__init__(message)
        self.line = node.start_mark.line + 1
        self.path, self.message, self.suggestion = path, message, suggestion


def read_file(path: Path, problems: list[Problem]) -> Node | None:
    """The mapping that a file holds; what is wrong with it is added to `problems`.

    An empty file is an empty mapping. None if nothing can be made of the file.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        problems.append(Problem(shown(path), "", f"cannot be read: {error.strerror}"))
        return None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problems.append(Problem(f"{shown(path)}:{line}", "", "is not UTF-8 text"))
        return None
    node = _read(text, lambda line: Origin.file(path, line), "", problems)
    if node is None:
        return None
    if node.value is None:
        return Node({}, node.origin)
    if not isinstance(node.value, dict):
        problems.append(Problem(str(node.origin), "", "a configuration is a mapping of `key: value` lines"))
        return None
    return node


def read_value(text: str, origin: Origin, key: str, problems: list[Problem]) -> Node | None:
    """A value from the command line or the environment.

    Text that begins with a bracket, a brace or a quote is YAML (`[1, 2]`, `{name: mlp}`, `"3"`). Anything
    else is one scalar, taken whole: `#`, `: ` and `*` mean nothing in it.
    """
    text = text.strip()
    if not text:
        problems.append(Problem(str(origin), key, "has no value", "write `null` for none or `''` for an empty text"))
        return None
    if text[0] in "[{'\"":
        return _read(text, lambda line: origin, key, problems)
    try:
        return Node(scalar(text), origin)
    except ValueError as error:
        problems.append(Problem(str(origin), key, str(error)))
        return None


def scalar(text: str) -> Scalar:
    """The value of a plain (unquoted) scalar in YAML 1.2's core schema.

    >>> scalar("1e-3"), scalar("0o17"), scalar("off"), scalar("~")
    (0.001, 15, 'off', None)
    """
    for name, pattern in CORE:
        if pattern.match(text):
            return _CONVERT[name](text)
    return text


def _to_int(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    try:
        return int(text[2:] if base != 10 else text, base)
    except ValueError:
        raise ValueError("is not a whole number that can be read") from None


def _to_float(text: str) -> float:
    try:
        return float(re.sub(r"\.(inf|nan)\Z", r"\1", text.lower()))
    except ValueError:
        raise ValueError("is not a number") from None


def _to_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("is neither true nor false")
    return text.lower() == "true"


_CONVERT: dict[str, Callable[[str], Scalar]] = {
    "null": lambda text: None,
    "bool": _to_bool,
    "int": _to_int,
    "float": _to_float,
    "str": lambda text: text,
}


def _read(text: str, origin: Callable[[int], Origin], key: str, problems: list[Problem]) -> Node | None:
    """Parses one document; `origin` makes an Origin of a line number."""
    prefix: tuple[Key, ...] = (key,) if key else ()
    try:
        if len(text) > 1000:  # PyYAML's C composer recurses without a limit of its own and would crash
            _check_depth(text)
        document = yaml.compose(text, Loader=_Loader)
        if document is None:
            return Node(None, origin(1), empty=True)
        return _Converter(origin, problems).convert(document, prefix, origin(document.start_mark.line + 1), 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        message = " ".join(part for part in (error.problem, error.context) if part)
        if "nesting depth" in message:  # the parser's own limit, since PyYAML 6.0.4
            problems.append(Problem(str(origin(line)), key, f"is nested more than {MAX_DEPTH} levels deep"))
        else:
            problems.append(Problem(str(origin(line)), key, f"not valid YAML: {message}", _hint(text, line)))
    except yaml.YAMLError as error:  # characters that YAML forbids
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        problems.append(Problem(str(origin(line)), key, f"not valid YAML: {getattr(error, 'reason', error)}"))
    except RecursionError:
        problems.append(Problem(str(origin(1)), key, f"is nested more than {MAX_DEPTH} levels deep"))
    except _Fault as fault:
        problems.append(Problem(str(origin(fault.line)), dotted(fault.path), fault.message, fault.suggestion))
    return None


def _check_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise RecursionError
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _hint(text: str, line: int) -> str | None:
    lines = text.splitlines()
    written = lines[line - 1] if line <= len(lines) else ""
    if "${" in written:
        return "quote a reference inside [ ] or { }: '${...}'"
    if "\t" in written[: len(written) - len(written.lstrip())]:
        return "indent with spaces, not with tabs"
    return None


class _Converter:
    """Turns PyYAML's nodes into ours."""

    def __init__(self, origin: Callable[[int], Origin], problems: list[Problem]) -> None:
        self.origin, self.problems = origin, problems
        self.count = 0
        self.open: set[int] = set()  # the collections being converted, to notice one that contains itself

    def convert(self, node: Any, path: tuple[Key, ...], origin: Origin, depth: int) -> Node:
        self.count += 1
        if self.count > MAX_NODES:
            raise _Fault(node, path, f"has more than {MAX_NODES} values", "aliases multiply what they repeat")
        if isinstance(node, yaml.ScalarNode):
            # Plain and nothing there: `key:`; a quoted empty text has a style.
            return Node(self.scalar(node, path), origin, empty=node.value == "" and not node.style)
        if depth >= MAX_DEPTH:
            raise _Fault(node, path, f"is nested more than {MAX_DEPTH} levels deep")
        if id(node) in self.open:
            raise _Fault(node, path, "an alias that contains itself")
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                self.expect_tag(node, path, "seq")
                items = [
                    self.convert(item, (*path, index), self.at(item), depth + 1)
                    for index, item in enumerate(node.value)
                ]
                return Node(items, origin)
            self.expect_tag(node, path, "map")
            return Node(self.mapping(node, path, depth), origin)
        finally:
            self.open.discard(id(node))

    def at(self, node: Any) -> Origin:
        return self.origin(node.start_mark.line + 1)

    def expect_tag(self, node: Any, path: tuple[Key, ...], name: str) -> None:
        if node.tag != TAG + name:
            raise _Fault(node, path, f"unknown tag `{_short(node.tag)}`", "a configuration holds plain values only")

    def scalar(self, node: Any, path: tuple[Key, ...]) -> Scalar:
        convert = _CONVERT.get(node.tag.removeprefix(TAG)) if node.tag.startswith(TAG) else None
        if convert is None:
            raise _Fault(node, path, f"unknown tag `{_short(node.tag)}`", "a configuration holds plain values only")
        try:
            return convert(node.value)
        except ValueError as error:
            raise _Fault(node, path, f"`{node.value[:40]}` {error}") from None

    def mapping(self, node: Any, path: tuple[Key, ...], depth: int) -> dict[Key, Node]:
        own: dict[Key, Node] = {}
        merged: dict[Key, Node] = {}
        seen: dict[str, Origin] = {}  # by text: `1` and `"1"` are the same to a dotted path
        for key_node, value_node in node.value:
            place = self.at(key_node)
            if isinstance(key_node, yaml.ScalarNode) and key_node.value == "<<" and not key_node.style:
                for key, value in self.merge_sources(value_node, path, depth):
                    merged.setdefault(key, value)
                continue
            key = self.key(key_node, path)
            value = self.convert(value_node, (*path, key), place, depth + 1)
            if (first := seen.get(str(key))) is not None:
                self.problems.append(Problem(str(place), dotted((*path, key)), f"is written twice; first at {first}"))
                continue
            seen[str(key)] = place
            own[key] = value
        return {**{key: value for key, value in merged.items() if str(key) not in seen}, **own}

    def merge_sources(self, node: Any, path: tuple[Key, ...], depth: int) -> list[tuple[Key, Node]]:
        """The entries of `<<: *anchor` or `<<: [*first, *second]`; earlier sources win (YAML merge key)."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        entries: list[tuple[Key, Node]] = []
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                raise _Fault(source, (*path, "<<"), "only a mapping can be merged")
            merged = self.convert(source, path, self.at(source), depth + 1)
            assert isinstance(merged.value, dict)
            entries += merged.value.items()
        return entries

    def key(self, node: Any, path: tuple[Key, ...]) -> Key:
        if not isinstance(node, yaml.ScalarNode):
            raise _Fault(node, path, "a key is a word, not a collection")
        key = self.scalar(node, path)
        if isinstance(key, str) or (isinstance(key, int) and not isinstance(key, bool)):
            return key
        raise _Fault(node, path, f"`{node.value}` is no key: it reads as {_kind(key)}", f"quote it: '{node.value}'")


def _kind(value: Scalar) -> str:
    return "nothing" if value is None else "a truth value" if isinstance(value, bool) else "a number"


def _short(tag: str) -> str:
    return "!!" + tag.removeprefix(TAG) if tag.startswith(TAG) else tag
