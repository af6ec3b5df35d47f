"""CPU seconds of commands and imports: what a person waits for before anything happens."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REACHED_FIRST_STEP = 86
"""The status with which `benchmarks.first_step` ends the process."""
LEAVE = "import os; os._exit(0)"
"""Taking torch down at the end of a process costs 0.1 s, which is no part of importing anything."""


@dataclass
class Line:
    """One process to start, and what it took: CPU seconds, user and system, of all its threads."""

    what: str
    arguments: Sequence[str]
    beyond_torch: bool = False
    """Less what `import torch` took in the same round."""
    at_most: float | None = None
    """The aim."""
    status: int = 0
    """The exit status that it should have."""
    taken: list[float] = field(default_factory=list)
    failed: bool = False

    def text(self) -> str:
        if self.failed or not self.taken:
            return "failed, or not installed"
        return f"{self.median:.2f} ({min(self.taken):.2f} to {max(self.taken):.2f})"

    @property
    def median(self) -> float:
        return statistics.median(self.taken)


def lines() -> list[Line]:
    """What is measured."""
    commands = (["--help"], ["config", "lenet"], ["list"], ["list", "models"], ["runs"])
    first_step = ["callbacks={exit: {name: benchmarks.first_step.ExitAfterFirstStep}}"]
    imports = (
        "import flambeau",
        "from flambeau import Trainer",
        "from ignite.engine import Engine",
        "from lightning.fabric import Fabric",
        "from poutyne import Model",
        "from skorch import NeuralNet",
        "from accelerate import Accelerator",
        "from transformers import Trainer",
        "from fastai.learner import Learner",
        "from lightning import Trainer",
    )
    return [
        Line("a bare interpreter", ["-c", "pass"]),
        *(Line(f"`flambeau {' '.join(c)}`", ["-m", "flambeau", *c], at_most=0.4) for c in commands),
        *(Line(f"`{i}`, beyond torch", ["-c", f"import torch; {i}; {LEAVE}"], beyond_torch=True) for i in imports),
        *(
            Line(
                f"from `flambeau train {config}` to its first step, beyond torch",
                ["-m", "flambeau", "train", config, *first_step],
                beyond_torch=True,
                at_most=1.0,
                status=REACHED_FIRST_STEP,
            )
            for config in ("mlp", "lenet")
        ),
    ]


def measure(repeats: int) -> list[Line]:
    """Start each process `repeats` times, in rounds, with `import torch` at the head of each round."""
    torch = Line("`import torch`", ["-c", f"import torch; {LEAVE}"])
    others = lines()
    with tempfile.TemporaryDirectory(prefix="flambeau-benchmark-") as folder:
        for line in (torch, *others):  # writes the byte code, fills the disk's cache
            line.failed = _start(line, folder) is None
        for _ in range(repeats):
            for line in (torch, *others):
                seconds = None if line.failed else _start(line, folder)
                if seconds is not None:
                    line.taken.append(seconds - torch.taken[-1] if line.beyond_torch else seconds)
    return [torch, *others]


def _start(line: Line, folder: str) -> float | None:
    """CPU seconds of one process; None if it did not end as it should."""
    process = subprocess.Popen(
        [sys.executable, *line.arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime if process.returncode == line.status else None
