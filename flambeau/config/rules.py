"""Rules between the settings of a configuration: contradictions, and values that nothing would read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flambeau.config.nearest import did_you_mean
from flambeau.errors import Problem

if TYPE_CHECKING:
    from flambeau.config.origin import Origin

_LAYERS = {"default": 0, "file": 1, "environment": 2, "command line": 3}


def cross_field_problems(values: Mapping[str, Any], origins: Mapping[str, Origin]) -> list[Problem]:
    """What no single value shows to be wrong."""
    rules = _Rules(values, origins)
    rules.run_length()
    rules.batch_size()
    rules.several_optimizers()
    rules.turns()
    rules.unread("data.prefetch", "data.workers", lambda workers: not workers, "there are no workers", "workers: 2")
    rules.unread(
        "trainer.max_skips",
        "trainer.nan_policy",
        lambda policy: policy in (None, "stop"),
        "only `nan_policy: skip` reads it",
        "nan_policy: skip",
    )
    rules.unread(
        "trainer.validate_every_epochs",
        "trainer.validate_every_steps",
        lambda steps: steps is not None,
        "`validate_every_steps` replaces it",
        "validate_every_epochs: null",
    )
    return rules.problems


class _Rules:
    def __init__(self, values: Mapping[str, Any], origins: Mapping[str, Origin]) -> None:
        self.values, self.origins = values, origins
        self.problems: list[Problem] = []

    def get(self, key: str) -> Any:
        section, _, name = key.partition(".")
        found = self.values.get(section)
        return found.get(name) if isinstance(found, Mapping) else None

    def add(self, key: str, message: str, suggestion: str) -> None:
        origin = self.origins.get(key) or self.origins.get(key.partition(".")[0])
        self.problems.append(Problem(str(origin) if origin else "", key, message, suggestion))

    def run_length(self) -> None:
        """Exactly one of `epochs` and `steps` says how long the run is."""
        if not isinstance(self.values.get("trainer"), Mapping):
            return  # reported as a missing section
        epochs, steps = self.get("trainer.epochs"), self.get("trainer.steps")
        if epochs is None and steps is None:
            self.add("trainer", "how long to train is missing", "give `epochs` or `steps`")
        if epochs is not None and steps is not None:
            first, second = self.origins.get("trainer.epochs"), self.origins.get("trainer.steps")
            message = f"both `epochs` ({first}) and `steps` ({second}) are given"
            self.add("trainer.steps", message, "give one of them, and null for the other")

    def batch_size(self) -> None:
        """The global batch or that of one process, not both."""
        both = self.get("data.batch_size") is not None and self.get("data.batch_size_per_rank") is not None
        if both:
            first, second = self.origins.get("data.batch_size"), self.origins.get("data.batch_size_per_rank")
            message = f"both `batch_size` ({first}) and `batch_size_per_rank` ({second}) are given"
            self.add("data.batch_size_per_rank", message, "give one of them, and null for the other")

    def turns(self) -> None:
        """Turns in which modules train are two or more, and as long as one setting says."""
        alternate = self.get("trainer.alternate")
        if not isinstance(alternate, Mapping):
            return
        if (alternate.get("every_epochs") is None) == (alternate.get("every_steps") is None):
            message = "give either `every_epochs` or `every_steps`"
            self.add("trainer.alternate", "how long a turn is must be said once", message)
        modules = alternate.get("modules")
        if isinstance(modules, list) and len(modules) < 2:
            self.add("trainer.alternate.modules", "there are not two turns", "e.g. [[encoder], [decoder]]")

    def several_optimizers(self) -> None:
        """One optimizer or several, each with a label; schedulers by the same labels; a trainer that uses them."""
        several, schedulers = self.values.get("optimizers"), self.values.get("schedulers")
        if several is None:
            if schedulers is not None:
                self.add("schedulers", "there are no `optimizers`", "give `scheduler`, or `optimizers` of these labels")
            return
        if not isinstance(several, Mapping):
            return  # reported as a section of another form
        if self.values.get("optimizer") is not None:
            first, second = self.origins.get("optimizer"), self.origins.get("optimizers")
            message = f"both `optimizer` ({first}) and `optimizers` ({second}) are given"
            self.add("optimizers", message, "write `optimizer: null` to leave out the one")
        if not several:
            self.add("optimizers", "names no optimizer", "give at least one: `{main: {name: adamw}}`")
        for label in several:
            if not str(label).isidentifier():
                self.add(f"optimizers.{label}", "a label is a name of letters, digits and _", "see also `parameters`")
        for label in schedulers if isinstance(schedulers, Mapping) else ():
            if label not in several:
                hint = f"the optimizers are {', '.join(map(str, several))}"
                self.add(f"schedulers.{label}", "no optimizer is called so", did_you_mean(str(label), several) or hint)
        if self.get("trainer.name") in (None, "default"):
            message = "the default trainer makes its updates with one optimizer"
            self.add("trainer", message, "name a trainer whose `update` calls optimize(label, loss): `trainer.name`")

    def unread(self, key: str, of: str, without_effect: Any, reason: str, remedy: str) -> None:
        """Report a value that another setting leaves without effect.

        Not if that other one was set by a later layer or file: `data.workers=0` on the command line is no
        reason to complain of the file's `prefetch`.
        """
        if self.get(key) is None or not without_effect(self.get(of)):
            return
        mine, other = self.origins.get(key), self.origins.get(of)
        if mine is None or mine.kind == "default" or (other is not None and _is_elsewhere(other, mine)):
            return
        self.add(key, f"nothing reads this value: {reason}", f"remove it, or write `{remedy}`")


def _is_elsewhere(other: Origin, mine: Origin) -> bool:
    """Whether `other` comes from a later layer than `mine`, or from another file."""
    if other.kind == mine.kind == "file":
        return other.place.rpartition(":")[0] != mine.place.rpartition(":")[0]
    return _LAYERS[other.kind] > _LAYERS[mine.kind]
