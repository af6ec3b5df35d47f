"""References between values: `${optimizer.lr}`, `${env:DATA_DIR}`, `${data.num_classes}`.

A text that is exactly one reference takes the referred value with its type; references within a longer text
are written into it. `$${` stands for a plain `${`. A reference to an attribute that only the built data
module has (`${data.num_classes}`) is *deferred*: it stays text until the data module exists.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flambeau.config.merge import same_key
from flambeau.config.nearest import did_you_mean
from flambeau.config.origin import DEFAULT, Key, Node, Scalar, children, dotted, walk
from flambeau.config.yaml import MAX_DEPTH, MAX_NODES, scalar
from flambeau.errors import Problem

_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_OF_VARS = re.compile(r"(?<!\$)\$\{\s*vars\.")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass(frozen=True)
class Surroundings:
    """What references can reach besides the configuration's own values."""

    environ: Mapping[str, str]
    offered: Callable[[], frozenset[str] | None]
    """Public attributes of the data part; None if its source cannot be read: only building can tell."""
    defaults: Callable[[str], Mapping[str, Any]]
    """Defaults of a section's settings and arguments (of the top level for an empty text)."""
    complete: bool = True
    """Whether all files were read; if not, a reference to nothing is not reported."""


@dataclass
class Resolved:
    """A configuration whose references were followed."""

    root: dict[Key, Node]
    texts: dict[str, str] = field(default_factory=dict)
    """As written, by dotted path: the values that hold something of the environment or are deferred."""
    variables: dict[str, str] = field(default_factory=dict)
    """As written, by dotted path: the values that refer to an entry of `vars`."""
    deferred: set[str] = field(default_factory=set)
    """Dotted paths of the values that wait for the data module."""
    referred: set[str] = field(default_factory=set)
    """Dotted paths that some reference names."""
    failed: set[str] = field(default_factory=set)
    """Dotted paths of the values whose references lead nowhere; they keep their text."""


@dataclass(frozen=True)
class _Found:
    node: Node
    of_environment: bool = False
    deferred: bool = False
    failed: bool = False


class _Problem(Exception):
    """What is wrong with the reference that is being followed."""

    def __init__(self, message: str, suggestion: str | None = None) -> None:
        super().__init__(message)
        self.message, self.suggestion = message, suggestion


class _Circle(_Problem):
    def __init__(self, steps: list[tuple[Key, ...]]) -> None:
        names = " -> ".join(dotted(step) for step in [*steps, steps[0]])
        super().__init__(f"the references go round in a circle: {names}")
        self.steps = steps


class _TooMany(Exception):
    """References multiply what they repeat beyond any real configuration."""


def resolve(root: dict[Key, Node], around: Surroundings, problems: list[Problem]) -> Resolved:
    """Follows every reference; those that lead nowhere or in a circle are added to `problems`, each once."""
    resolver = _Resolver(root, around)
    values: dict[Key, Node] = {}
    for key, node in root.items():
        try:
            values[key] = resolver.node(node, (key,), (key,)).node
        except _TooMany:
            problems.append(Problem(str(node.origin), str(key), f"references make more than {MAX_NODES} values of it"))
            resolver.result.failed.add(str(key))
            break
    problems += dict.fromkeys(resolver.problems)
    resolver.result.root = {**root, **values}
    return resolver.result


def fill(text: str, attribute: Callable[[str], Any]) -> Any:
    """The value of a deferred text, once `attribute` can give the data module's attributes by name."""
    whole = _REFERENCE.fullmatch(text)
    if whole is not None and whole[1] is not None:
        return attribute(_attribute(whole[1]))

    def written(match: re.Match[str]) -> str:
        return "${" if match[1] is None else _as_text(attribute(_attribute(match[1])))

    return _REFERENCE.sub(written, text)


def escape(text: str) -> str:
    """A text as it must be written to mean itself: `${` becomes `$${`."""
    return text.replace("${", "$${")


def _attribute(inner: str) -> str:
    return inner.strip().partition(".")[2]


def _as_text(value: Any) -> str:
    """A value within a longer text, as YAML would write it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Resolver:
    def __init__(self, root: dict[Key, Node], around: Surroundings) -> None:
        self.root, self.around = root, around
        self.result = Resolved(root)
        self.problems: list[Problem] = []
        self.following: list[tuple[Key, ...]] = []  # paths of the texts being resolved, to notice a circle
        self.circles: set[frozenset[tuple[Key, ...]]] = set()
        self.count = 0

    def node(self, node: Node, path: tuple[Key, ...], to: tuple[Key, ...]) -> _Found:
        """Resolves what is written at `path` for use at `to` (another place where a reference led here)."""
        self.count += 1
        if self.count > MAX_NODES:
            raise _TooMany
        if isinstance(node.value, str):
            return self.text(node, node.value, path, to) if "${" in node.value else _Found(node)
        if not isinstance(node.value, dict | list):
            return _Found(node)
        found = [(key, self.node(child, (*path, key), (*to, key))) for key, child in children(node)]
        value = {key: child.node for key, child in found}
        return _Found(
            Node(value if isinstance(node.value, dict) else list(value.values()), node.origin),
            of_environment=any(child.of_environment for _, child in found),
            deferred=any(child.deferred for _, child in found),
            failed=any(child.failed for _, child in found),
        )

    def text(self, node: Node, text: str, path: tuple[Key, ...], to: tuple[Key, ...]) -> _Found:
        if path in self.following:
            raise _Circle(self.following[self.following.index(path) :])
        self.following.append(path)
        try:
            found = self.expand(node, text, to)
        except _Problem as problem:
            if isinstance(problem, _Circle) and problem.steps[0] != path:
                raise  # reported at the text where the circle was entered
            if not isinstance(problem, _Circle) or frozenset(problem.steps) not in self.circles:
                self.problems.append(Problem(str(node.origin), dotted(path), problem.message, problem.suggestion))
            if isinstance(problem, _Circle):
                self.circles.add(frozenset(problem.steps))
            found = _Found(node, failed=True)
        finally:
            self.following.pop()
        name, waits = dotted(to), found.deferred and isinstance(found.node.value, str)
        if found.failed:
            self.result.failed.add(name)
        if waits:
            self.result.deferred.add(name)
        if waits or found.of_environment:
            self.result.texts[name] = text
        if _OF_VARS.search(text):
            self.result.variables[name] = text
        return found

    def expand(self, node: Node, text: str, to: tuple[Key, ...]) -> _Found:
        """The value of a text with references in it."""
        whole = _REFERENCE.fullmatch(text)
        if whole is not None and whole[1] is not None:
            found = self.reference(whole[1].strip(), to, whole=True)
            return replace(found, node=replace(found.node, origin=node.origin))
        pieces: list[tuple[str, bool]] = []  # each with whether it must stay a reference
        used: list[_Found] = []
        end = 0
        for match in _REFERENCE.finditer(text):
            pieces.append((text[end : match.start()], False))
            end = match.end()
            if match[0] == "${":
                raise _Problem("`${` opens a reference that is not closed", "write `$${` for a plain `${`")
            if match[1] is None:
                pieces.append(("${", False))
                continue
            found = self.reference(match[1].strip(), to, whole=False)
            if isinstance(found.node.value, dict | list):
                raise _Problem(f"`{match[0]}` is a {_KIND[type(found.node.value)]} and cannot stand within a text")
            used.append(found)
            pieces.append((_as_text(found.node.value), found.deferred))
        pieces.append((text[end:], False))
        deferred = any(found.deferred for found in used)
        value = "".join(piece if stays or not deferred else escape(piece) for piece, stays in pieces)
        return _Found(
            Node(value, node.origin),
            of_environment=any(found.of_environment for found in used),
            deferred=deferred,
            failed=any(found.failed for found in used),
        )

    def reference(self, inner: str, to: tuple[Key, ...], *, whole: bool) -> _Found:
        """What `${inner}` stands for."""
        if inner.startswith("env:"):
            return self.environment(inner.removeprefix("env:"), whole=whole)
        words = inner.split(".")
        if not all(words) or ":" in inner:
            raise _Problem(f"`${{{inner}}}` is no reference", "write `${section.key}` or `${env:NAME}`")
        self.result.referred.add(inner)
        if (target := self.lookup(words)) is not None:
            return self.node(*target, to)
        offered: frozenset[str] | None = frozenset()
        if words[0] == "data" and len(words) == 2:
            offered = self.around.offered()
            if offered is not None and words[1] in offered:
                return _deferred(inner, to)
        default = self.default(words)
        if default is not None:
            return _Found(default)
        if offered is None:
            return _deferred(inner, to)
        if not self.around.complete:
            return _Found(Node(f"${{{inner}}}", DEFAULT), failed=True)
        raise _Problem(f"`${{{inner}}}` refers to nothing", did_you_mean(inner, self.names(words[0])))

    def environment(self, variable: str, *, whole: bool) -> _Found:
        name, colon, default = variable.partition(":")
        if not _VARIABLE.match(name):
            raise _Problem(f"`{name}` is no name of an environment variable", "write `${env:NAME}`")
        text = self.around.environ.get(name, default if colon else None)
        if text is None:
            hint = f"set it, or give a default: `${{env:{name}:...}}`"
            raise _Problem(f"the environment variable {name} is not set", hint)
        value: Scalar = text
        if whole and text:
            with contextlib.suppress(ValueError):  # a number too long to be one stays text
                value = scalar(text)
        return _Found(Node(value, DEFAULT), of_environment=True)

    def lookup(self, words: list[str], hops: int = 0) -> tuple[Node, tuple[Key, ...]] | None:
        """The node at a dotted path and its true path; a reference that stands for a section is followed."""
        here = Node(self.root, DEFAULT)
        path: tuple[Key, ...] = ()
        for index, word in enumerate(words):
            key: Key
            if isinstance(here.value, str):
                link = _REFERENCE.fullmatch(here.value)
                if link is None or link[1] is None or ":" in link[1] or hops > MAX_DEPTH:
                    return None
                return self.lookup([*link[1].strip().split("."), *words[index:]], hops + 1)
            if isinstance(here.value, list) and word.isdecimal() and int(word) < len(here.value):
                key, here = int(word), here.value[int(word)]
            elif isinstance(here.value, dict) and (key := same_key(here.value, word)) in here.value:
                here = here.value[key]
            else:
                return None
            path = (*path, key)
        return here, path

    def default(self, words: list[str]) -> Node | None:
        value: Any = self.around.defaults(words[0] if len(words) > 1 else "")
        for word in words[1:] if len(words) > 1 else words:
            if not isinstance(value, Mapping) or word not in value:
                return None
            value = value[word]
        return _from_plain(value)

    def names(self, section: str) -> list[str]:
        """Everything that could have been meant."""
        names = [dotted(path) for path, _ in walk(Node(self.root, DEFAULT)) if path]
        names += [f"{section}.{key}" for key in self.around.defaults(section)]
        return names + [f"data.{key}" for key in self.around.offered() or ()]


_KIND = {dict: "mapping", list: "list"}


def _deferred(inner: str, to: tuple[Key, ...]) -> _Found:
    if to[0] == "data":
        raise _Problem(f"`${{{inner}}}` is known only when the data is built, of which this is a setting")
    return _Found(Node(f"${{{inner}}}", DEFAULT), deferred=True)


def _from_plain(value: Any) -> Node:
    if isinstance(value, Mapping):
        return Node({key: _from_plain(child) for key, child in value.items()}, DEFAULT)
    if isinstance(value, list | tuple):
        return Node([_from_plain(child) for child in value], DEFAULT)
    return Node(value, DEFAULT)
