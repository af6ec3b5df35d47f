"""Configurations: YAML files, the environment and the command line in one checked tree. No torch here."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flambeau.config.load import Config, load_config
    from flambeau.config.origin import Origin
    from flambeau.config.project import Project, find_project

__all__ = ["Config", "load_config", "Origin", "Project", "find_project"]

_HOMES = {
    "Config": "flambeau.config.load",
    "load_config": "flambeau.config.load",
    "Origin": "flambeau.config.origin",
    "Project": "flambeau.config.project",
    "find_project": "flambeau.config.project",
}


def __getattr__(name: str) -> Any:
    # Commands that need no configuration (`flambeau runs`) do not pay for reading YAML.
    if name not in _HOMES:
        raise AttributeError(f"module 'flambeau.config' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
