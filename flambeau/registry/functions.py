"""Functions that a configuration names by import path, to be called while a run goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flambeau.errors import UsageError
from flambeau.registry.load import import_object, refusal

Function = Callable[..., Any] | str
"""Hint of an argument that takes a function, or its import path in a configuration (`my_module.my_function`), which
the configuration check then looks up."""


def load_function(function: Function, what: str) -> Callable[..., Any]:
    """The function itself, imported if it is given by its path.

    Args:
        what: who asks, for errors: `every: call`.

    Raises:
        UsageError: it does not exist, is not called, or may not be named in a configuration.
    """
    if not isinstance(function, str):
        if not callable(function):
            raise UsageError(f"{what}: a {type(function).__name__} is no function")
        return function
    if fault := fault_of_function(function):
        raise UsageError(f"{what}: {function} {fault}")
    found = import_object(function)
    if not callable(found):
        raise UsageError(f"{what}: {function} is no function, but a {type(found).__name__}")
    home = getattr(found, "__module__", None) or ""
    own = f"{home}.{getattr(found, '__qualname__', type(found).__qualname__)}".replace(".<locals>", "")
    reason = fault_of_function(own)
    if home not in ("", "__main__") and reason and not reason.startswith("is not an import path"):
        raise UsageError(f"{what}: {function} is {own}, which {reason}")
    return found  # type: ignore[no-any-return]


def fault_of_function(target: str) -> str | None:
    """Why the function at an import path may not be named in a configuration, or None."""
    if "." not in target:
        return "is no import path: write module.function"
    if reason := refusal(target):
        return reason
    if target.startswith("torch."):
        return "is torch's own, of which only classes are taken"
    return None
