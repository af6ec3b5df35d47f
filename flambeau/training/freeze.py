"""Modules that are not trained."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from flambeau.errors import UsageError


def freeze_modules(model: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """Take the modules whose dotted names match a shell-style pattern out of training.

    Their parameters get no gradient. The loop keeps them in evaluation mode, so that dropout is off and the
    statistics of batch normalisation stand still.

    Raises:
        UsageError: a pattern matches no module.
    """
    frozen = find_modules(model, patterns, "trainer.freeze")
    for module in frozen:
        module.requires_grad_(False)
    return frozen


def find_modules(model: nn.Module, patterns: Sequence[str], key: str) -> list[nn.Module]:
    """The modules whose dotted names match one of the patterns.

    Args:
        key: of the setting that has the patterns.

    Raises:
        UsageError: a pattern matches no module.
    """
    names = dict(model.named_modules())
    found: dict[str, nn.Module] = {}
    for pattern in patterns:
        matches = {name: module for name, module in names.items() if name and fnmatchcase(name, pattern)}
        if not matches:
            near = difflib.get_close_matches(pattern, [name for name in names if name], n=3)
            hint = (
                f"the nearest names are {', '.join(near)}"
                if near
                else f"the modules are {', '.join(filter(None, names))}"
            )
            raise UsageError(f"{key}: '{pattern}' matches no module of the model", remedy=hint)
        found.update(matches)
    return list(found.values())
