"""Names of parts: `@register.model("lenet")` in any file of a project, or an import path with a dot.

Parts are *found* by reading source (no import, no list to keep) and *loaded* only when a run uses them:

    >>> from flambeau import register
    >>> @register.model("lenet")
    ... class LeNet(nn.Module): ...

The decorator returns its object unchanged. Names are string literals, so that reading suffices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from flambeau.errors import UsageError

KINDS: Mapping[str, str] = {
    "data": "data modules: train, validation and test datasets with their transforms",
    "transform": "transforms of samples and batches",
    "model": "models: torch modules",
    "criterion": "criterions: (outputs, targets) to a loss",
    "metric": "metrics: update, compute, reset",
    "optimizer": "optimizers: torch.optim classes",
    "scheduler": "schedules: optimizer step to a factor of the learning rate",
    "callback": "callbacks: watch a run or react to it",
    "tracker": "trackers: where scalars, text and images go",
    "trainer": "trainers: how a run proceeds",
}
"""Kinds of parts, each with a line for people."""

T = TypeVar("T")


class Register:
    """The decorators that name parts, one a kind: `@register.model("lenet")`."""

    def __init__(self) -> None:
        self.recorded: dict[tuple[str, str], Any] = {}
        """What the modules imported so far have registered, by (kind, name)."""

    def _decorator(self, kind: str, name: str) -> Callable[[T], T]:
        if not isinstance(name, str) or not name or "." in name:
            raise UsageError(
                f"@register.{kind}({name!r}): a name is text without a dot",
                remedy=f'write @register.{kind}("my_{kind}")',
            )

        def record(part: T) -> T:
            self.recorded[kind, name] = part
            return part

        return record

    def data(self, name: str) -> Callable[[T], T]:
        """Name a data module."""
        return self._decorator("data", name)

    def transform(self, name: str) -> Callable[[T], T]:
        """Name a transform class, or a function of what is transformed."""
        return self._decorator("transform", name)

    def model(self, name: str) -> Callable[[T], T]:
        """Name a model class, or a function that makes a model."""
        return self._decorator("model", name)

    def criterion(self, name: str) -> Callable[[T], T]:
        """Name a criterion class, a function that makes one, or a function of (outputs, targets)."""
        return self._decorator("criterion", name)

    def metric(self, name: str) -> Callable[[T], T]:
        """Name a metric class."""
        return self._decorator("metric", name)

    def optimizer(self, name: str) -> Callable[[T], T]:
        """Name an optimizer class."""
        return self._decorator("optimizer", name)

    def scheduler(self, name: str) -> Callable[[T], T]:
        """Name a schedule class."""
        return self._decorator("scheduler", name)

    def callback(self, name: str) -> Callable[[T], T]:
        """Name a callback class."""
        return self._decorator("callback", name)

    def tracker(self, name: str) -> Callable[[T], T]:
        """Name a tracker class."""
        return self._decorator("tracker", name)

    def trainer(self, name: str) -> Callable[[T], T]:
        """Name a trainer class."""
        return self._decorator("trainer", name)

    def alias(self, kind: str, name: str, target: str) -> None:
        """Give a short name to an import path: `register.alias("optimizer", "adamw", "torch.optim.AdamW")`.

        A statement at the top level of a module, with literal arguments; it is found by reading.
        """
        if kind not in KINDS:
            raise UsageError(f"register.alias: no kind of part is called {kind!r}", remedy=f"one of {', '.join(KINDS)}")


register = Register()
