"""What is other in one configuration than in another, in words for people: no secret is in them."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any, Literal

from flambeau.config.compose import PREFIX
from flambeau.config.difference import flatten
from flambeau.config.load import Config, load_config
from flambeau.config.showing import hidden
from flambeau.config.writing import write_inline
from flambeau.errors import ConfigError

Kind = Literal["modified", "type changed", "added", "removed"]


@dataclass(frozen=True)
class Modification:
    """One value that differs."""

    kind: Kind
    key: str
    before: str | None
    """As YAML on one line; None if there was none."""
    after: str | None
    origin: str
    """Where the value, or of a removed one the value before, was written."""

    @property
    def note(self) -> str:
        """What is to be said beside the new value: `was 0.002`."""
        if self.kind == "added":
            return "added"
        return f"was {self.before}" + (" (of another type)" if self.kind == "type changed" else "")

    def __str__(self) -> str:
        if self.kind == "added":
            return f"+ {self.key}: {self.after}  # {self.origin}"
        if self.kind == "removed":
            return f"- {self.key}: {self.before}  # {self.origin}"
        return f"~ {self.key}: {self.before} -> {self.after}  # {self.origin}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def modifications(before: Config, after: Config) -> list[Modification]:
    """The values that are not in `after` as they are in `before`, by dotted key; lists are values."""
    old, new = (flatten(hidden(config, (), config.values)) for config in (before, after))
    found = []
    for key in sorted(old.keys() | new.keys()):
        if key in old and key in new and old[key] == new[key] and _type(old[key]) == _type(new[key]):
            continue
        kind: Kind = "added" if key not in old else "removed" if key not in new else "modified"
        if kind == "modified" and _type(old[key]) != _type(new[key]) and None not in (old[key], new[key]):
            kind = "type changed"
        was, is_now = (write_inline(values[key]) if key in values else None for values in (old, new))
        origin = (before if kind == "removed" else after).origin(key)
        found.append(Modification(kind, key, was, is_now, str(origin or "default")))
    return found


def modifications_of_files(config: Config) -> list[Modification]:
    """What the environment and the command line made other than the files of a configuration have it.

    Where the files by themselves are no whole configuration, everything that was given besides counts as added.
    """
    if all(origin.kind == "file" for origin in config.origins.values()):
        return []
    environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    try:
        alone = load_config(str(config.sources[-1]), environ=environ, project=config.project)
    except ConfigError:
        values = flatten(hidden(config, (), config.values))
        given = ((key, config.origin(key)) for key in sorted(values))
        return [
            Modification("added", key, None, write_inline(values[key]), str(origin))
            for key, origin in given
            if origin is not None and origin.kind != "file"
        ]
    return modifications(alone, config)


def _type(value: Any) -> type:
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)
