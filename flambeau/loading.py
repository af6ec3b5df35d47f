"""What a notebook or a program does with a run that lies on disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flambeau.checkpoint import Checkpoint
from flambeau.checkpoint.of_run import checkpoint_of_run, judged_part
from flambeau.checkpoint.retention import Mode
from flambeau.config import Config
from flambeau.errors import CheckpointError
from flambeau.run_folder import RunFolder, Status, read_metrics
from flambeau.run_folder.saved_config import load_saved_config
from flambeau.runtime.devices import resolve_device
from flambeau.training import Trainer, snapshot
from flambeau.training.build import build_trainer, rebuild_model


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

    def model(self, *, checkpoint: str | int = "best", device: str | torch.device = "cpu") -> nn.Module:
        """The model with the weights of a checkpoint, in evaluation mode on `device`; nothing else of the run is built.

        The weights are their average where the monitored score is of that, as for `flambeau evaluate`.

        Args:
            checkpoint: `best`, `last` or a step.
        """
        found = self.checkpoint(checkpoint)
        part = judged_part(self.folder, (self.config.values.get("trainer") or {}).get("monitor"))
        model = rebuild_model(self.config, self.folder.read_data_values())
        weights = found.load(part)[part]
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(f"the weights in {found.path} do not fit the model: {error}") from error
        return model.to(resolve_device(str(device))).eval()

    def checkpoint(self, which: str | int = "best", *, mode: Mode | None = None) -> Checkpoint:
        """A verified checkpoint: `best` (the newest, if no score was monitored), `last` or a step.

        Args:
            mode: whether the highest or the lowest score is best; default: what the run itself took for its best.

        Raises:
            CheckpointError: there is none.
        """
        return checkpoint_of_run(self.folder, which, mode=mode, warn=_warn)


def _warn(text: str) -> None:
    import warnings

    warnings.warn(text, stacklevel=3)
