"""The settings of a trainer that was made in Python, without a configuration."""

from __future__ import annotations

import difflib
from dataclasses import fields, replace
from typing import Any

from flambeau.config.sections import CheckpointSettings, LoaderSettings, TrainerSettings


def apply_options(
    trainer: TrainerSettings | None,
    loader: LoaderSettings | None,
    checkpoint: CheckpointSettings | None,
    options: dict[str, Any],
) -> tuple[TrainerSettings, LoaderSettings, CheckpointSettings]:
    """Put keyword options where they belong: `epochs=3` to the trainer's, `batch_size=64` to the loader's settings.

    Raises:
        TypeError: an option that no settings class knows, with the nearest that one does.
    """
    settings: list[Any] = [
        trainer or TrainerSettings(),
        loader or LoaderSettings(),
        checkpoint or CheckpointSettings(),
    ]
    known = [{field.name for field in fields(group)} for group in settings]
    for name, value in options.items():
        for position, names in enumerate(known):
            if name in names:
                settings[position] = replace(settings[position], **{name: value})
                break
        else:
            near = difflib.get_close_matches(name, sorted(set().union(*known)), n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise TypeError(f"Trainer has no option '{name}'{hint}")
    return settings[0], settings[1], settings[2]
