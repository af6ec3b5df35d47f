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
    names = dict(model.named_modules())
    frozen: dict[str, nn.Module] = {}
    for pattern in patterns:
        matches = {name: module for name, module in names.items() if name and fnmatchcase(name, pattern)}
        if not matches:
            near = difflib.get_close_matches(pattern, [name for name in names if name], n=3)
            hint = (
                f"the nearest names are {', '.join(near)}"
                if near
                else f"the modules are {', '.join(filter(None, names))}"
            )
            raise UsageError(f"trainer.freeze: '{pattern}' matches no module of the model", remedy=hint)
        frozen.update(matches)
    for module in frozen.values():
        module.requires_grad_(False)
    return list(frozen.values())
