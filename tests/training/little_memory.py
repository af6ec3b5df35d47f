"""Runs in processes with little memory, whose results `test_micro_batch.py` judges.

They are forked from a process that has trained nothing: memory that it had freed would count for them as theirs.
"""

from __future__ import annotations

import gc
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from support.processes import together
from support.tasks import make_trainer, points
from torch import nn
from torch.optim import Adam
from torch.utils.data import TensorDataset

from flambeau import Batch, Trainer
from flambeau.runtime.world import World, current_world
from flambeau.training.micro_batch import find_micro_batch

BATCH, REST = 1024, 976
"""Samples of a batch, and of the last one of an epoch."""


def deep() -> nn.Module:
    """A model whose backward pass needs 160 KB a sample: 160 MB for a whole batch."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 1024), *[nn.ReLU() for _ in range(40)], nn.Linear(1024, 3))


def adam(model: nn.Module) -> Adam:
    return Adam(model.parameters(), lr=1e-3)


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def limit_memory(megabytes: int) -> None:
    """Let this process have so much more than it has now."""
    make_trainer(deep(), batch_size=4, dry_batch=False, world=World()).fit()  # loads what torch loads late
    if current_world().size > 1:
        import torch._dynamo  # noqa: F401 - by DistributedDataParallel
    gc.collect()
    status = Path("/proc/self/status").read_text().split()
    limit = int(status[status.index("VmData:") + 1]) * 1024 + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def train(options: dict[str, Any], limits: dict[int, int] | None = None) -> tuple[int, dict[str, torch.Tensor]]:
    """The parts a step that a run of three steps took, and its weights.

    Args:
        limits: megabytes that processes are left, by rank.
    """
    if limits:
        limit = limits.get(current_world().rank)
        if limit is not None:
            limit_memory(limit)
    trainer = make_trainer(deep(), points(BATCH + REST), steps=3, batch_size=BATCH, eval_batch_size=8, **options)
    trainer.fit()
    assert (trainer.state.step, trainer.state.samples) == (3, BATCH + REST + BATCH)  # the global batch is what it was
    return trainer.accumulate, state_of(trainer)


def too_much() -> str:
    """A whole batch at a time, in memory for half of one."""
    try:
        train({"dry_batch": False}, {0: 130})
    except RuntimeError as error:
        return str(error)
    return "trained"


def first_half(run: Path) -> None:
    """The first two of four steps, in little memory."""

    class Half(Trainer):
        def advance(self, batch: Batch) -> None:
            super().advance(batch)
            if self.state.step == 2:
                self.preempt("the test")

    limit_memory(130)
    make_trainer(
        deep(), points(BATCH + REST), optimizer=adam, kind=Half, run_dir=run, batch_size=BATCH, steps=4,
        micro_batch="auto", every_steps=1,
    ).fit()  # fmt: skip


def at_the_end_of_an_epoch() -> tuple[int, int]:
    """The size of a batch that is the first of a run, and the micro-batch that was found with it."""
    limit_memory(130)
    trainer = make_trainer(deep(), points(BATCH + 100), batch_size=BATCH, steps=3)
    last = next(trainer.batches(1))
    return last.size, find_micro_batch(trainer, last, trainer.world)


def heavy() -> tuple[str, str]:
    """Runs of a model with many weights, without and with a search for what fits."""
    rows = torch.arange(BATCH)
    data = TensorDataset(rows, rows % 3)

    def attempt(**options: Any) -> str:
        model = nn.Sequential(nn.Embedding(6000, 1024), *[nn.ReLU() for _ in range(25)], nn.Linear(1024, 3))
        trainer = make_trainer(model, data, optimizer=adam, batch_size=BATCH, steps=3, **options)
        try:
            trainer.fit()
        except RuntimeError as error:
            assert "can't allocate memory" in str(error)
            return f"failed after step {trainer.state.step}"
        return "trained"

    limit_memory(150)
    return attempt(dry_batch=False), attempt(micro_batch="auto")


def main(folder: Path) -> None:
    """All of the above."""
    auto: dict[str, Any] = {"micro_batch": "auto"}
    found = {
        "too much": together(1, too_much),
        "halves": together(1, train, auto, {0: 130}),
        "in several processes": together(2, train, auto, {1: 75}),
        "first half": together(1, first_half, folder / "run"),
        "at the end of an epoch": together(1, at_the_end_of_an_epoch),
        "heavy": together(1, heavy),
    }
    torch.save(found, folder / "found.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
