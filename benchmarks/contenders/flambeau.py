"""Flambeau, in its notebook form; the configuration builds the same trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from torch import nn

from benchmarks.tasks import PreparedBatches, Task, Work
from flambeau import Trainer
from flambeau.data import ArrayDataset, Batch
from flambeau.metrics import Accuracy
from flambeau.tracking.tensorboard import TensorBoardTracker

LIBRARY = "flambeau"
VARIANTS = {
    "default": "as it ships: run folder, checkpoints, TensorBoard, metrics, progress bar, guards",
    "quiet": "no run folder and no progress bar",
}


class PreparedTrainer(Trainer):
    """Takes the prepared batches in place of its own feeding."""

    prepared: PreparedBatches

    def batches(self, start: int) -> Iterator[Batch]:
        ids = np.arange(self.prepared.batch_size)
        return iter([Batch(inputs, targets, ids, len(targets)) for inputs, targets in self.prepared])


def fit(work: Work, variant: str) -> None:
    quiet = variant == "quiet"
    kind = Trainer if work.prepared_steps is None else PreparedTrainer
    trainer = kind(
        work.model,
        ArrayDataset(work.task.inputs, work.task.targets),
        nn.CrossEntropyLoss(),
        work.optimizer(),
        metrics={"accuracy": Accuracy()},
        trackers=() if quiet else tensorboard,
        batch_transform=normalise(work.task),
        run_dir=None if quiet else work.folder / "run",
        batch_size=work.task.batch_size,
        progress=not quiet,
        epochs=work.epochs if work.prepared_steps is None else None,
        steps=work.prepared_steps,
    )
    if isinstance(trainer, PreparedTrainer):
        assert work.prepared_steps is not None
        trainer.prepared = PreparedBatches(work.task, work.prepared_steps)
    trainer.fit()


def tensorboard(run_dir: Path, resume_step: int | None) -> list[TensorBoardTracker]:
    return [TensorBoardTracker(run_dir=run_dir, resume_step=resume_step)]


def normalise(task: Task) -> Callable[[Batch], Batch] | None:
    """The task's normalisation a batch at a time; None where the data needs none."""
    if not task.inputs.dtype.is_floating_point:
        return lambda batch: batch.replace(inputs=task.normalise(batch.inputs), targets=batch.targets)
    return None
