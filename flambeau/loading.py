"""What a notebook or a program does with a run that lies on disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from flambeau.checkpoint import Checkpoint, CheckpointStore
from flambeau.checkpoint.of_run import checkpoint_of_run, judged_part
from flambeau.checkpoint.publish import published
from flambeau.checkpoint.retention import Mode
from flambeau.checkpoint.store import name_of
from flambeau.config import Config
from flambeau.config.sections import CheckpointSettings
from flambeau.errors import CheckpointError, MissingExtraError, UsageError
from flambeau.run_folder import RunFolder, State, Status, find_runs, read_metrics
from flambeau.run_folder.saved_config import load_saved_config
from flambeau.run_folder.status import state_now
from flambeau.runtime.devices import resolve_device
from flambeau.training import Trainer, snapshot
from flambeau.training.build import Recipes, build_data, build_trainer, rebuild_model

if TYPE_CHECKING:
    import pandas

Column = npt.NDArray[np.float64] | npt.NDArray[np.int64]
"""Values of a run's record, one a step."""


def load_run(path: str | Path) -> Run:
    """The run in a folder.

    Raises:
        RunFolderError: there is none.
    """
    return Run(RunFolder.open(Path(path)))


def load_runs(path: str | Path = "runs") -> list[Run]:
    """All runs below a folder, newest first; none if there is no such folder."""
    return [Run(RunFolder(summary.path)) for summary in find_runs(Path(path))]


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

    @property
    def state(self) -> State:
        """`running`, `finished`, `failed` or `preempted`; `dead` if it says running and its process is gone."""
        return state_now(self.status)

    @property
    def finished(self) -> bool:
        """Whether it was trained to its end."""
        return self.status.state == "finished"

    @cached_property
    def config(self) -> Config:
        """The configuration it was started with."""
        return load_saved_config(self.folder)

    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, in order."""
        return read_metrics(self.folder.metrics_file)

    def columns(self) -> dict[str, Column]:
        """The record as a table: a column a name (`train/loss`, `val/accuracy`), a row for each step that has a record.

        Returns:
            float64 arrays of one length, NaN where a step has no such value; `step` (int64) is the first.
        """
        rows: dict[int, dict[str, Any]] = {}
        for record in self.metrics():
            rows.setdefault(record["step"], {}).update(record)
        names = dict.fromkeys(name for row in rows.values() for name, value in row.items() if _is_number(value))
        names.pop("step", None)
        table: dict[str, Column] = {"step": np.array(list(rows), dtype=np.int64)}
        for name in names:
            values = [row.get(name) for row in rows.values()]
            table[name] = np.array([value if _is_number(value) else np.nan for value in values], dtype=np.float64)
        return table

    def curve(self, name: str) -> tuple[Column, Column]:
        """The steps at which a score was recorded, and its values: `plt.plot(*run.curve("val/loss"))`.

        Raises:
            UsageError: the record has no such score.
        """
        found = [(record["step"], record[name]) for record in self.metrics() if _is_number(record.get(name))]
        if not found:
            there = ", ".join(sorted(self.columns()))
            raise UsageError(f"{self.path} has no record of '{name}'", remedy=f"there are {there}")
        steps, values = zip(*found, strict=True)
        return np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)

    def frame(self) -> pandas.DataFrame:
        """`columns()` as a pandas table, `step` being its index.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise MissingExtraError("pandas", "pandas") from error
        return pandas.DataFrame(self.columns()).set_index("step")

    def checkpoints(self) -> list[Checkpoint]:
        """What can be loaded, by step; each has `step`, `score` and `path`. `checkpoint` verifies one."""
        store = self._store("max")
        steps, places = store.steps(), published(store.folder)
        return [Checkpoint.open(places[name_of(step)]) for step in steps]

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

    def _store(self, mode: Any) -> CheckpointStore:
        return CheckpointStore(self.folder.checkpoints, settings=CheckpointSettings(), mode=mode, warn=_warn)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _warn(text: str) -> None:
    import warnings

    warnings.warn(text, stacklevel=3)
