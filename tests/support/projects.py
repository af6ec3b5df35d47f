"""A small project on disk, and the command line run in it: in this process, or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PARTS = '''
"""Parts of a test project: everything about a run that is easy to get wrong at a resume."""

import os
import random
import time

import numpy as np
import torch
from torch import nn

from flambeau import ArrayDataset, Callback, DataModule, register


class Jitter:
    """Noise on a sample, from each of the three generators that augmentations use."""

    def __init__(self, size):
        self.size = size

    def __call__(self, sample):
        inputs, target = sample
        noise = torch.randn(6) + float(np.random.randn()) + random.gauss(0.0, 1.0)
        return inputs + self.size * noise, target


@register.data("points")
class Points(DataModule):
    """Clouds of points, one a class."""

    num_classes: int = 3

    def __init__(self, size: int = 92, jitter: float = 0.0, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def cloud(count):
            targets = torch.arange(count) % 3
            return ArrayDataset(torch.randn(count, 6, generator=generator) + targets[:, None], targets)

        self.train, self.val, self.test = cloud(size), cloud(31), cloud(29)
        if jitter:
            self.train_transform = Jitter(jitter)


@register.model("dropnet")
class DropNet(nn.Module):
    """Layers with random numbers (dropout) and with state of their own (batch normalisation)."""

    def __init__(self, num_classes: int = 3, dropout: float = 0.3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(16, num_classes)

    def forward(self, inputs):
        return self.head(self.body(inputs))


@register.callback("tally")
class Tally(Callback):
    """State of its own, that draws from the generators too."""

    def __init__(self) -> None:
        self.steps, self.sum, self.epochs = 0, torch.zeros(()), [0, 0]

    def on_epoch_start(self, trainer):
        self.epochs[0] += 1

    def on_epoch_end(self, trainer):
        self.epochs[1] += 1

    def on_step_end(self, trainer):
        self.steps += 1
        self.sum = self.sum + torch.rand(())

    def state_dict(self):
        return {"steps": self.steps, "sum": self.sum, "epochs": self.epochs}

    def load_state_dict(self, state):
        self.steps, self.sum, self.epochs = state["steps"], state["sum"], state["epochs"]


@register.callback("beacon")
class Beacon(Callback):
    """Tells another process that a step is done, takes its time, and does what a test asks for at a step."""

    def on_step_end(self, trainer):
        step = str(trainer.state.step)
        if path := os.environ.get("BEACON"):
            with open(path, "w") as file:
                file.write(step)
        time.sleep(float(os.environ.get("PACE", "0")))
        if os.environ.get("PREEMPT_AT") == step:
            trainer.preempt("a test")
        if os.environ.get("FAIL_AT") == step:
            raise RuntimeError("the test's own failure")
'''

CONFIG = """\
seed: 3
data: {name: points, batch_size: 8}
model: {name: dropnet, num_classes: "${data.num_classes}"}
criterion: {name: cross_entropy}
optimizer: {name: adamw, lr: 0.01}
scheduler: {name: cosine, warmup_steps: 5}
trainer: {epochs: 4, log_every: 5}
metrics: {accuracy: {}}
callbacks: {tally: {}, beacon: {}}
"""


@dataclass(frozen=True)
class Project:
    """A project folder with the parts above, and the configuration `tiny`."""

    root: Path

    @classmethod
    def write(cls, root: Path, *, parts: str = "", config: str = CONFIG) -> Project:
        """Write the project's files.

        Args:
            parts: source of parts besides the ones above.
        """
        (root / "configs").mkdir(parents=True)
        (root / "configs" / "tiny.yaml").write_text(config)
        # A name of its own: several projects are imported into one process by tests that call `main`.
        (root / f"parts_{abs(hash(root)):x}.py").write_text(PARTS + parts)
        return cls(root)

    @property
    def module(self) -> str:
        """The import name of the parts."""
        return next(self.root.glob("parts_*.py")).stem

    def run(
        self, *arguments: str | Path, expect: int | None = 0, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`python -m flambeau ARGUMENTS` in the project's folder, to its end."""
        done = subprocess.run(
            command(arguments), cwd=self.root, env=environment(env), capture_output=True, text=True, timeout=120
        )
        if expect is not None:
            assert done.returncode == expect, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """The same, in the background, as the leader of a process group of its own; what it says is in `output`."""
        # Not a pipe: data workers whose trainer was killed hold it open until they notice, seconds later.
        with self.output.open("w") as output:
            return subprocess.Popen(
                command(arguments),
                cwd=self.root,
                env=environment(env),
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    @property
    def output(self) -> Path:
        """What the process that was started last has said."""
        return self.root / "output.txt"


def command(arguments: Sequence[str | Path]) -> list[str]:
    return [sys.executable, "-m", "flambeau", *map(str, arguments)]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, with this checkout importable and one thread."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(extra or {})}


@dataclass(frozen=True)
class Answer:
    """What a command that ran in this process said, and its exit status."""

    status: int
    out: str
    err: str


class InProcess:
    """`flambeau ARGUMENTS` in this process and in a project's folder: faster than a process of its own."""

    def __init__(self, project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.project, self._capsys = project, capsys
        monkeypatch.chdir(project.root)
        monkeypatch.setattr(sys, "path", [*sys.path])

    def __call__(self, *arguments: str | Path, expect: int | None = 0) -> Answer:
        from flambeau.cli import main

        self._capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        if expect is not None:
            assert status == expect, f"{arguments}: {status}\n{out}\n{err}"
        return Answer(status, out, err)
