"""A configuration as everything else receives it: composed, resolved, checked."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flambeau.config.catalog import Catalog
from flambeau.config.check import check_config
from flambeau.config.compose import PREFIX, Composed, compose
from flambeau.config.defaults import Defaults
from flambeau.config.origin import COMMAND_LINE, Node, Origin, dotted, plain, shown, walk
from flambeau.config.project import Project, find_project
from flambeau.config.references import Resolved, Surroundings, escape, fill, resolve
from flambeau.config.secrets import is_secret, is_secret_reference
from flambeau.config.slots import SLOTS
from flambeau.errors import ConfigError, Problem


@dataclass
class Config:
    """One configuration, and where each of its values was written."""

    name: str
    """The name of its file, without folder and suffix: `lenet`; of files named together, `lenet+wide`."""
    values: dict[str, Any]
    """Nested dicts, lists and scalars; references are followed, except those that wait for the data."""
    origins: dict[str, Origin]
    """By the dotted path of every section, entry and leaf: `optimizer`, `optimizer.groups.0.pattern`."""
    sources: list[Path]
    """The files that it was made from; later ones win."""
    project: Project
    texts: dict[str, str] = field(default_factory=dict)
    """As written, by dotted path: what holds something of the environment or waits for the data module."""
    deferred: frozenset[str] = frozenset()
    """Dotted paths of the values that wait for the data module."""
    variables: dict[str, str] = field(default_factory=dict)
    """As written, by dotted path: what refers to an entry of `vars`."""
    referred: frozenset[str] = frozenset()
    """Dotted paths that the configuration's references name."""

    @property
    def debug(self) -> str | None:
        """The word of `trainer.debug` that shortens the run, if any."""
        return self.section("trainer").get("debug")

    def section(self, key: str) -> dict[str, Any]:
        """A copy of one section; empty if there is none."""
        return copy.deepcopy(self.values.get(key)) or {}

    def origin(self, key: str) -> Origin | None:
        """Where the value at a dotted path, or else the nearest thing around it, was written."""
        while key and key not in self.origins:
            key = key.rpartition(".")[0]
        return self.origins.get(key)

    def with_data(self, data: object) -> dict[str, Any]:
        """The values with every `${data.attribute}` taken from the built data module.

        Raises:
            ConfigError: the data module lacks an attribute that the configuration refers to.
        """
        problems: list[Problem] = []

        def filled(value: Any, key: str) -> Any:
            if key not in self.deferred:
                return value
            try:
                return fill(value, lambda name: getattr(data, name))
            except AttributeError as error:
                problems.append(Problem(str(self.origin(key)), key, f"`{value}`: {error}"))
                return None

        values: dict[str, Any] = _map(self.values, filled)
        if problems:
            raise ConfigError(problems)
        return values

    def to_yaml(self) -> str:
        """The configuration in one file, which loads to the same values.

        It holds what was set and no defaults. What comes from the environment by `${env:...}` stays a
        reference, so that no secret is written; so does what waits for the data module or uses `vars`.
        """
        from flambeau.config.writing import write

        return write(self._written(self.variables | self.texts))

    def written(self) -> dict[str, Any]:
        """The values as a file may state them: no secrets, `${` escaped, in the order of the sections."""
        return self._written(self.shown_texts)

    @property
    def shown_texts(self) -> dict[str, str]:
        """By dotted key, the text of each value that is shown as it was written: it may hold a secret, or wait."""
        return self.texts | {key: text for key, text in self.variables.items() if is_secret_reference(text)}

    def _written(self, texts: Mapping[str, str]) -> dict[str, Any]:

        def text(value: Any, key: str) -> Any:
            if is_secret(key) and isinstance(value, str):
                return "${env:" + PREFIX + key.upper().replace(".", "__") + "}"
            return escape(value) if isinstance(value, str) else value

        values: dict[str, Any] = _map(self.values, text, texts)
        order = ["seed", "vars", "runs_dir", *SLOTS]
        return {key: values[key] for key in [*(key for key in order if key in values), *values]}


def _map(
    value: Any,
    change: Callable[[Any, str], Any],
    texts: Mapping[str, str] | None = None,
    path: tuple[Any, ...] = (),
) -> Any:
    """A copy with `change(value, dotted path)` made to each scalar; what `texts` has is taken from there."""
    key = dotted(path)
    if texts is not None and key in texts:
        return texts[key]
    if isinstance(value, dict):
        return {own: _map(child, change, texts, (*path, own)) for own, child in value.items()}
    if isinstance(value, list):
        return [_map(child, change, texts, (*path, index)) for index, child in enumerate(value)]
    return change(value, key)


def load_config(
    name_or_path: str,
    overrides: Sequence[str] = (),
    *,
    environ: Mapping[str, str] = os.environ,
    project: Project | None = None,
) -> Config:
    """Reads, composes, resolves and checks a configuration; torch is not imported.

    Args:
        name_or_path: `lenet` (looked up in the project's `configs/`, then among Flambeau's own), a file, or several
            joined by `+`, of which the later ones win.
        overrides: `key=value` settings, as on the command line.
        environ: variables `FLAMBEAU__SECTION__KEY` and those that `${env:NAME}` refers to.
        project: default: the project around the working directory.

    Raises:
        ConfigError: with everything that is wrong, in the order of the files.
    """
    project = project or find_project()
    problems: list[Problem] = []
    composed = compose(name_or_path, overrides, environ, project, problems)
    if not composed.sources:
        raise ConfigError(problems)
    catalog = Catalog(project.root)
    defaults = Defaults(plain(Node(composed.root, COMMAND_LINE)), catalog)
    around = Surroundings(environ, defaults.offered, defaults.of, composed.complete)
    resolved = resolve(composed.root, around, problems)
    config = _config(composed, resolved, project)
    found = [*_secrets(config), *_unused(config), *check_config(config, catalog)]
    problems += [problem for problem in found if _is_certain(problem, config, resolved, composed.complete)]
    if problems:
        raise ConfigError(_in_order(problems, config))
    return config


def _config(composed: Composed, resolved: Resolved, project: Project) -> Config:
    tree = Node(resolved.root, COMMAND_LINE)
    return Config(
        name=composed.name,
        values=plain(tree),
        origins={dotted(path): node.origin for path, node in walk(tree) if path},
        sources=composed.sources,
        project=project,
        texts=resolved.texts,
        deferred=frozenset(resolved.deferred),
        variables=resolved.variables,
        referred=frozenset(resolved.referred),
    )


def _secrets(config: Config) -> list[Problem]:
    """Secrets that are written out in a file or on the command line."""
    hint = "keep it in the environment and write `${env:NAME}`"
    return [
        Problem(str(config.origins[key]), key, "a secret is not written out", hint)
        for key in _secret_texts(config)
        if config.origins[key].kind != "environment" and key not in config.texts
    ]


def _secret_texts(config: Config) -> dict[str, str]:
    """The texts under keys that name secrets, by dotted path."""
    texts = {key: _text_at(config, key) for key in config.origins if is_secret(key)}
    return {key: text for key, text in texts.items() if text}


def _unused(config: Config) -> list[Problem]:
    """Entries of `vars` that no reference names."""
    variables = config.values.get("vars")
    if not isinstance(variables, dict) or "vars" in config.referred:
        return []
    used = {name.split(".")[1] for name in config.referred if name.startswith("vars.")}
    return [
        Problem(str(config.origins[key]), key, "nothing refers to it", f"remove it, or use it: `${{{key}}}`")
        for key in (f"vars.{own}" for own in variables if str(own) not in used)
    ]


def _text_at(config: Config, key: str) -> str | None:
    """The text at a dotted path, if there is one and it is text."""
    value: Any = config.values
    for word in key.split("."):
        if isinstance(value, list) and word.isdecimal() and int(word) < len(value):
            value = value[int(word)]
        elif isinstance(value, dict):
            value = value.get(word)
        else:
            return None
    return value if isinstance(value, str) else None


def _is_certain(problem: Problem, config: Config, resolved: Resolved, complete: bool) -> bool:
    """Whether what the check found is a fault of its own, no consequence of one that is reported already."""
    key = problem.key
    if any(key == failed or key.startswith(failed + ".") for failed in resolved.failed):
        return False
    if complete:
        return True
    # A file is missing: what is not there may stand in it, `name` and the use of `vars` included.
    section = key.partition(".")[0]
    slot = SLOTS.get(section)
    named = slot is None or slot.form == "many" or section == "trainer" or "name" in config.section(section)
    return key in config.origins and section != "vars" and named


def _in_order(problems: list[Problem], config: Config) -> list[Problem]:
    """Each problem once, by file and line, then environment and command line; no secret in a message."""
    files = {shown(path): index for index, path in enumerate(config.sources)}

    def place(problem: Problem) -> tuple[int, int]:
        file, _, line = problem.place.rpartition(":")
        if line.isdecimal():
            return files.get(file, len(files)), int(line)
        return (len(files) + 1, 0) if problem.place == str(COMMAND_LINE) else (len(files), 0)

    hidden = [
        text
        for key in config.origins
        if any(map(is_secret, [key, *re.findall(r"[\w.]+", config.texts.get(key, ""))]))
        and len(text := _text_at(config, key) or "") > 3
    ]

    def blotted(problem: Problem) -> Problem:
        message = problem.message
        for text in hidden:
            message = message.replace(text, "***")
        return replace(problem, message=message)

    return [blotted(problem) for problem in sorted(dict.fromkeys(problems), key=place)]
