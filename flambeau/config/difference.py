"""What differs between two configurations, and whether a run can go on with the second as if with the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from flambeau.config.load import Config
from flambeau.config.slots import ORDERED
from flambeau.errors import UsageError

HARMLESS = (
    "data.workers",
    "data.prefetch",
    "data.device_resident",
    "data.fingerprint",
    "trainer.progress",
    "trainer.profile*",
    "trainer.detect_anomaly",
    "trainer.summary",
    "trainer.test_at_end",
    "checkpoint*",
    "tracking*",
    "runs_dir",
)
"""Settings that change no number of a run."""

WATCHERS = frozenset(
    {"generated_images", "gradients", "history", "notify", "sample_images", "sample_text", "time_limit"}
)
"""Callbacks that change no number of a run."""

LENGTH = ("trainer.epochs", "trainer.steps", "trainer.stop_after_epochs")
"""Settings of a run's length: harmless if the schedule of its steps so far stays what it was, judged elsewhere."""

ABSENT = "(not set)"


@dataclass(frozen=True)
class Change:
    """One value that is not what it was."""

    key: str
    before: Any
    after: Any
    watches: bool = False
    """Whether it is of a callback that changes no number."""

    @property
    def breaks_equality(self) -> bool:
        """Whether the run would no longer be the one that began."""
        if self.watches or self.key in LENGTH:
            return False
        return not any(fnmatchcase(self.key, pattern) for pattern in HARMLESS)

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.after}"


def differences(before: Config, after: Config) -> list[Change]:
    """The values that differ, by dotted key."""
    old, new = flatten(before.values), flatten(after.values)
    return [
        Change(key, old.get(key, ABSENT), new.get(key, ABSENT), _only_watches(key, before.values, after.values))
        for key in sorted(old.keys() | new.keys())
        if old.get(key, ABSENT) != new.get(key, ABSENT)
    ]


def _only_watches(key: str, *of: Mapping[str, Any]) -> bool:
    """Whether a key is of a callback that is, in each of the configurations that have it, one of `WATCHERS`."""
    section, _, rest = key.partition(".")
    label = rest.partition(".")[0]
    if section != "callbacks" or not label:
        return False
    given = [values["callbacks"][label] or {} for values in of if label in (values.get("callbacks") or {})]
    return {arguments.get("name", label) for arguments in given} <= WATCHERS


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of a nested mapping by dotted key, and of ordered sections the order of their labels."""
    flat = _leaves(values, prefix)
    for section in ORDERED:
        if isinstance(named := values.get(section), Mapping) and len(named) > 1:
            flat[f"{section} (order)"] = list(named)
    return flat


def _leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of a nested mapping by dotted key; lists and empty mappings are leaves."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _leaves(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def check_changes(changes: Sequence[Change], *, force: bool) -> None:
    """Refuse changes that make a run another one than it was, unless they are forced.

    Raises:
        UsageError: there are such; it names their keys.
    """
    breaking = [change.key for change in changes if change.breaks_equality]
    if breaking and not force:
        raise UsageError(
            f"{', '.join(breaking)}: with this the run is no longer the one that began",
            remedy="--force goes on all the same; a new run (flambeau train) keeps the two apart",
        )
