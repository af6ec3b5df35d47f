"""Rules between the settings of a configuration: contradictions, and values that nothing would read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from flambeau.config.nearest import did_you_mean
from flambeau.config.sections import ClipSettings, GroupSettings
from flambeau.errors import Problem

if TYPE_CHECKING:
    from flambeau.config.origin import Origin

_LAYERS = {"default": 0, "file": 1, "environment": 2, "command line": 3}


def cross_field_problems(values: Mapping[str, Any], origins: Mapping[str, Origin]) -> list[Problem]:
    """What no single value shows to be wrong."""
    rules = _Rules(values, origins)
    rules.run_length()
    rules.batch_size()
    rules.stop_after()
    for section in ("scheduler", "weight_decay_scheduler"):
        for length in ("warmup", "decay", "cycle"):
            rules.one_of(section, *(f"{length}_{unit}" for unit in ("steps", "epochs", "part")))
    rules.one_of("trainer", "clip_norm", "clip_value", "clip")
    rules.groups()
    rules.unread(
        "optimizer.lr_scaling",
        "optimizer.lr_reference_batch",
        lambda batch: batch is None,
        "only `lr_reference_batch` reads it",
        "lr_reference_batch: 256",
    )
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

    def one_of(self, section: str, *names: str) -> None:
        """At most one of some settings is given."""
        given = [f"{section}.{name}" for name in names if self.get(f"{section}.{name}") not in (None, [])]
        for key in given[1:]:
            first, second = self.origins.get(given[0]), self.origins.get(key)
            words = [own.rpartition(".")[2] for own in (given[0], key)]
            message = f"both `{words[0]}` ({first}) and `{words[1]}` ({second}) are given"
            self.add(key, message, "give one of them, and null for the other")

    def stop_after(self) -> None:
        """A run does not stop after its end."""
        stop, epochs = self.get("trainer.stop_after_epochs"), self.get("trainer.epochs")
        if isinstance(stop, int) and isinstance(epochs, int) and stop > epochs:
            message = f"the run has only {epochs} epochs"
            self.add("trainer.stop_after_epochs", message, "stop earlier, or make `epochs` larger")

    def groups(self) -> None:
        """Groups say which parameters they mean, and each setting once."""
        for key, groups in self._all_groups():
            of_optimizer = key != "trainer.clip"
            for place, group in enumerate(groups if isinstance(groups, list) else []):
                if not isinstance(group, Mapping):
                    continue  # reported with its type
                known = {field.name for field in fields(GroupSettings if of_optimizer else ClipSettings)}
                silent = all(group.get(name) in (None, []) for name in ("pattern", "type", "ndim"))
                if silent and group.keys() <= known:  # a mistyped key is one fault, not two
                    message = "nothing says which parameters are meant"
                    self.add(f"{key}.{place}", message, "give `pattern`, `type` or `ndim`")
                pair = ("lr", "lr_factor") if of_optimizer else ("norm", "value")
                given = [name for name in pair if group.get(name) is not None]
                if len(given) == 2:
                    self.add(f"{key}.{place}", f"both `{given[0]}` and `{given[1]}` are given", "give one of them")
                elif not given and not of_optimizer:
                    self.add(f"{key}.{place}", "nothing says how to clip", "give `norm` or `value`")

    def _all_groups(self) -> Iterator[tuple[str, Any]]:
        """The lists of groups, of one optimizer or of several, and of clipping, by their dotted keys."""
        yield "optimizer.groups", self.get("optimizer.groups")
        several = self.values.get("optimizers")
        for label, own in several.items() if isinstance(several, Mapping) else ():
            yield f"optimizers.{label}.groups", own.get("groups") if isinstance(own, Mapping) else None
        yield "trainer.clip", self.get("trainer.clip")

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
