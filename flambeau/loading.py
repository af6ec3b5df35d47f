"""What a notebook or a program does with a run that lies on disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from flambeau.checkpoint import Checkpoint, CheckpointStore
from flambeau.config import Config
from flambeau.config.convert import to_settings
from flambeau.config.sections import CheckpointSettings
from flambeau.errors import CheckpointError, UsageError
from flambeau.run_folder import RunFolder, Status, read_metrics
from flambeau.run_folder.saved_config import load_saved_config
from flambeau.training import Trainer, snapshot
from flambeau.training.build import Recipes, build_data, build_trainer


def load_run(path: str | Path) -> Run:
    """The run in a folder.

    Raises:
        RunFolderError: there is none.
    """
    return Run(RunFolder.open(Path(path)))


def load_model(path: str | Path, *, checkpoint: str | int = "best", device: str = "cpu") -> nn.Module:
    """The trained model of a run, in evaluation mode.

    Args:
        path: the run's folder.
        checkpoint: `best`, `last` or a step.
    """
    return load_run(path).model(checkpoint=checkpoint, device=device)


@dataclass(frozen=True)
class Run:
    """A run on disk."""

    folder: RunFolder

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def status(self) -> Status:
        """What the run is doing: state, step, best score."""
        return self.folder.status

    @cached_property
    def config(self) -> Config:
        """The configuration it was started with."""
        return load_saved_config(self.folder)

    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, in order."""
        return read_metrics(self.folder.metrics_file)

    def trainer(self, *, checkpoint: str | int = "best", device: str = "auto") -> Trainer:
        """A trainer as the run had it, its model with the weights of a checkpoint; it writes nothing into the run."""
        trainer = build_trainer(self.config, device=device)
        found = self.checkpoint(checkpoint, mode=trainer.mode)
        snapshot.load_weights(trainer, found)
        return trainer

    def data(self) -> Any:
        """The data module of the run, made anew from its configuration."""
        self.config.project.activate()
        return build_data(self.config, Recipes.of(self.config))[0]

    def model(self, *, checkpoint: str | int = "best", device: str = "cpu") -> nn.Module:
        """The model with the weights of a checkpoint, in evaluation mode."""
        return self.trainer(checkpoint=checkpoint, device=device).model.eval()

    def checkpoint(self, which: str | int = "best", *, mode: Any = "max") -> Checkpoint:
        """A verified checkpoint: `best` (the newest, if no score was monitored), `last` or a step.

        Raises:
            CheckpointError: there is none.
        """
        settings = to_settings(CheckpointSettings, self.config.section("checkpoint"))
        store = CheckpointStore(self.folder.checkpoints, settings=settings, mode=mode, warn=_warn)
        if isinstance(which, int) or which.isdigit():
            return store.at(int(which))
        if which not in ("best", "last"):
            raise UsageError(f"'{which}' is no checkpoint", remedy="use best, last or a step")
        found = (store.best() if which == "best" else None) or store.newest()
        if found is None:
            raise CheckpointError(f"{self.path} has no whole checkpoint")
        return found


def _warn(text: str) -> None:
    import warnings

    warnings.warn(text, stacklevel=3)
