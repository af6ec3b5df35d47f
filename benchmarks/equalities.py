"""How far the weights of several processes, and of accumulation, are from those of one process.

    python -m benchmarks.equalities

Every line of the table is a task, every column a way to take the same global batch. A figure is the largest relative
difference of a weight tensor (Euclidean norm) after the run from the same tensor after one process's run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import TensorDataset

from flambeau import Trainer
from flambeau.config.sections import EmaSettings, FsdpSettings
from flambeau.data.digits import Digits
from flambeau.models.lenet import LeNet
from flambeau.optim import Cosine
from flambeau.runtime.world import current_world, leave_world

WAYS = {
    "4 parts": (1, 4),
    "2 processes": (2, 1),
    "3 processes": (3, 1),
    "4 processes": (4, 1),
    "2 processes, 4 parts": (2, 4),
    "3 processes, 2 parts": (3, 2),
}
"""Processes, and parts that each takes its share in."""


@dataclass(frozen=True)
class Task:
    """One run."""

    model: Callable[[], nn.Module]
    data: Callable[[], TensorDataset]
    criterion: Callable[[], nn.Module] = nn.CrossEntropyLoss
    options: dict[str, Any] = field(default_factory=dict)
    parts: bool = True
    """Whether accumulation is the same mathematics: not where a layer looks at the batch as a whole."""


class Tokens(nn.CrossEntropyLoss):
    """Cross entropy of (N, T, C) against (N, T)."""

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return super().forward(outputs.flatten(0, 1), targets.flatten())


def network(*, normalised: bool = False) -> nn.Module:
    norm = [nn.BatchNorm1d(32)] if normalised else []
    return nn.Sequential(nn.Linear(6, 32, bias=not normalised), *norm, nn.Tanh(), nn.Linear(32, 4))


def points(count: int) -> TensorDataset:
    return TensorDataset(torch.randn(count, 6), torch.randint(4, (count,)))


def padded(count: int) -> TensorDataset:
    """Sequences of 5 of which 0 to 5 targets count."""
    targets, lengths = torch.randint(4, (count, 5)), torch.randint(0, 6, (count, 1))
    return TensorDataset(torch.randn(count, 5, 6), targets.masked_fill(torch.arange(5) >= lengths, -100))


def digits() -> TensorDataset:
    data: Any = Digits().train
    return TensorDataset(*data.fetch(torch.arange(len(data))))


BUSY: dict[str, Any] = {
    "clip_norm": 0.5,
    "ema": EmaSettings(decay=0.9),
    "scheduler": lambda total_steps: Cosine(total_steps=total_steps, warmup_steps=5),
}

TASKS = {
    "an MLP, 37 samples in batches of 8": Task(network, lambda: points(37)),
    "LeNet on digits, batches of 64": Task(
        lambda: LeNet(image_size=8), digits, options={"epochs": 2, "batch_size": 64}
    ),
    "the same in float32": Task(
        lambda: LeNet(image_size=8), digits, options={"epochs": 2, "batch_size": 64, "precision": "fp32"}
    ),
    "clipping, averaging, cosine schedule": Task(network, lambda: points(37), options=BUSY),
    "padded sequences": Task(network, lambda: padded(37), Tokens),
    "weighted classes": Task(
        network, lambda: points(37), lambda: nn.CrossEntropyLoss(weight=torch.tensor([0.1, 1.0, 5.0, 2.0]))
    ),
    "a loss that adds up": Task(network, lambda: points(37), lambda: nn.CrossEntropyLoss(reduction="sum")),
    "batch norm": Task(lambda: network(normalised=True), lambda: points(37), parts=False),
    "FSDP": Task(network, lambda: points(37), options={"fsdp": FsdpSettings(blocks=["Linear"]), "clip_norm": 0.5}),
}


def weights_of(task: Task, accumulate: int, *, sharded: bool) -> dict[str, torch.Tensor]:
    """The weights after a run."""
    torch.manual_seed(0)
    options = {"epochs": 4, "batch_size": 8, "precision": "fp64", **task.options}
    if not sharded:
        options.pop("fsdp", None)
    trainer = Trainer(
        task.model(),
        task.data(),
        task.criterion(),
        device="cpu",
        progress=False,
        accumulate=accumulate,
        **options,
    )
    trainer.fit()
    return {name: whole(value).contiguous() for name, value in trainer.model.state_dict().items()}


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor, put together if it lies in pieces over the processes; to be called in all of them."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def ways_of(task: Task) -> Iterator[str]:
    for way, (ranks, accumulate) in WAYS.items():
        if (task.parts or accumulate == 1) and (ranks > 1 or "fsdp" not in task.options):
            yield way


def work(way: str, folder: Path) -> None:
    """One process of a way: all tasks."""
    world = current_world()
    for number, task in enumerate(TASKS.values()):
        if way in ways_of(task):
            weights = weights_of(task, WAYS[way][1], sharded=True)
            if world.is_main:
                save_file(weights, folder / f"{number}.safetensors")
    leave_world()


def main() -> int:
    if len(sys.argv) > 1:
        work(sys.argv[1], Path(sys.argv[2]))
        return 0
    expected = [weights_of(task, 1, sharded=False) for task in TASKS.values()]
    found: dict[tuple[int, str], float] = {}
    for way, (ranks, _) in WAYS.items():
        with tempfile.TemporaryDirectory() as name:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
            module = ["-m", "benchmarks.equalities", way, name]
            subprocess.run([sys.executable, *(launcher if ranks > 1 else []), *module], check=True)
            for number, (task, alone) in enumerate(zip(TASKS.values(), expected, strict=True)):
                if way in ways_of(task):
                    weights = load_file(Path(name) / f"{number}.safetensors")
                    found[number, way] = max(map(difference, weights.values(), (alone[name] for name in weights)))
    print("| " + " | ".join(["", *WAYS]) + " |")
    print("|---" * (len(WAYS) + 1) + "|")
    for number, name in enumerate(TASKS):
        cells = [f"{found[number, way]:.1e}" if (number, way) in found else "" for way in WAYS]
        print("| " + " | ".join([name, *cells]) + " |")
    return 0


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm().clamp_min(1e-300))


if __name__ == "__main__":
    sys.exit(main())
