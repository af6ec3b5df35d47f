"""Flambeau: start, run and grow PyTorch projects, and know that the training is right."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flambeau.registry import register

if TYPE_CHECKING:
    from flambeau.data import ArrayDataset, Batch, DataModule
    from flambeau.loading import Run, load_model, load_run, load_runs
    from flambeau.metrics import Metric
    from flambeau.optim import Schedule
    from flambeau.pretrained import load_pretrained
    from flambeau.tracking import Tracker
    from flambeau.training import Callback, Trainer

__version__ = "0.1.0"

__all__ = [
    "register",
    "Trainer",
    "Callback",
    "Batch",
    "DataModule",
    "ArrayDataset",
    "Metric",
    "Schedule",
    "Tracker",
    "Run",
    "load_run",
    "load_runs",
    "load_model",
    "load_pretrained",
    "__version__",
]

_HOMES = {
    "Trainer": "flambeau.training",
    "Callback": "flambeau.training",
    "Batch": "flambeau.data",
    "DataModule": "flambeau.data",
    "ArrayDataset": "flambeau.data",
    "Metric": "flambeau.metrics",
    "Schedule": "flambeau.optim",
    "Tracker": "flambeau.tracking",
    "Run": "flambeau.loading",
    "load_run": "flambeau.loading",
    "load_runs": "flambeau.loading",
    "load_model": "flambeau.loading",
    "load_pretrained": "flambeau.pretrained",
}


def __getattr__(name: str) -> Any:
    # Names that need torch are imported when they are first used, so that the command line starts without it.
    if name not in _HOMES:
        raise AttributeError(f"module 'flambeau' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
