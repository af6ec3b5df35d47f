"""How long a checkpoint stops training: 100 million parameters with AdamW, beside a synchronous `torch.save`.

    python -m benchmarks.checkpoints                 # in turns, in one process; a few minutes and 5 GB of disk
    python -m benchmarks.checkpoints --folder /mnt/x # on another disk

Each round trains a few steps, saves in one way, goes on training until the save is on disk, and so on with the next
way. What a save costs is the time that `save` takes (the stall) and what the steps beside the writing take longer.
`Trainer.save` first looks whether all weights are finite. Memory is the peak of the process's resident memory, in a
process of its own for each way.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.harness import ENVIRONMENT, ROOT, spread
from flambeau.checkpoint import CheckpointStore
from flambeau.config.sections import CheckpointSettings
from flambeau.training.guard import weights_are_finite

WIDTH, LAYERS = 1024, 24
"""24 layers of 4 square matrices and norms: 100.8 million parameters, 1.21 GB with AdamW's state."""


class Training:
    """A model and its optimizer, whose steps take a while and change every weight."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(WIDTH), *(nn.Linear(WIDTH, WIDTH) for _ in range(4))]) for _ in range(LAYERS)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        for parameter in self.model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)

    def step(self) -> float:
        """Arithmetic and a pass over all weights; its seconds."""
        start = time.perf_counter()
        matrix = torch.ones(WIDTH, WIDTH)
        for _ in range(8):
            matrix = matrix @ matrix / WIDTH
        self.optimizer.step()
        return time.perf_counter() - start

    def state(self) -> dict[str, object]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}


Save = Callable[[int], Callable[[], bool]]
"""Saves under a number; gives a function that says whether the save is still under way."""


def with_store(training: Training, folder: Path, *, check: bool) -> Save:
    store = CheckpointStore(folder, settings=CheckpointSettings(keep_last=1), warn=print)

    def save(number: int) -> Callable[[], bool]:
        if check and not weights_are_finite(training.model):
            raise ValueError("a weight is not finite")
        store.save(number, training.state())
        return store.busy

    return save


def with_torch(training: Training, folder: Path, *, flush: bool) -> Save:
    folder.mkdir()

    def save(number: int) -> Callable[[], bool]:
        path = folder / "checkpoint.pt"
        torch.save(training.state(), path)
        if flush:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        return lambda: False

    return save


WAYS: dict[str, Callable[[Training, Path], Save]] = {
    "torch.save": lambda training, folder: with_torch(training, folder, flush=False),
    "torch.save and fsync": lambda training, folder: with_torch(training, folder, flush=True),
    "CheckpointStore.save": lambda training, folder: with_store(training, folder, check=False),
    "Trainer.save": lambda training, folder: with_store(training, folder, check=True),
}


def measure(ways: list[str], folder: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Seconds of each save, by way: `stall`, `slower` (of the steps until it was on disk), `until_on_disk`."""
    training = Training()
    for _ in range(3):
        training.step()
    saves = {way: WAYS[way](training, folder / str(number)) for number, way in enumerate(ways)}
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, save in saves.items():
            usual = statistics.median(training.step() for _ in range(5))
            start = time.perf_counter()
            busy = save(number)
            stall = time.perf_counter() - start
            slower = 0.0
            while busy():
                slower += training.step() - usual
            found[way].append({"stall": stall, "slower": slower, "until_on_disk": time.perf_counter() - start})
    return found


def peak_memory() -> int:
    """Greatest resident memory of this process so far, bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def memory_of(way: str, folder: str) -> dict[str, float]:
    """In a process of its own: bytes of the state, and how far two saves raise the peak of its memory."""
    command = [sys.executable, "-m", "benchmarks.checkpoints", "--memory", way, "--folder", folder]
    process = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, check=True, capture_output=True)
    answer: dict[str, float] = json.loads(process.stdout)
    return answer


def tell_memory(way: str, folder: Path) -> None:
    training = Training()
    training.step()
    before = peak_memory()
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        save = WAYS[way](training, Path(inside) / "saves")
        for number in range(2):
            busy = save(number)
            while busy():
                time.sleep(0.05)
    print(json.dumps({"parameters": training.parameters, "before": before, "rise": peak_memory() - before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to write to")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory:
        tell_memory(arguments.memory, arguments.folder)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        memory = {way: memory_of(way, folder) for way in WAYS}
        found = measure(list(WAYS), Path(folder), arguments.rounds)
    reference = spread([turn["stall"] for turn in found["torch.save"][1:]])[0]
    print("| | stall, s | of `torch.save`'s | first save, s | steps slower by, s | on disk after, s | memory, GB |")
    print("|---|---|---|---|---|---|---|")
    for way, turns in found.items():
        stall, low, high = spread([turn["stall"] for turn in turns[1:]])
        slower, until = (statistics.median(turn[key] for turn in turns[1:]) for key in ("slower", "until_on_disk"))
        cells = [
            *(f"`{way}`", f"{stall:.2f} ({low:.2f} to {high:.2f})", f"{stall / reference:.2f}"),
            *(f"{turns[0]['stall']:.2f}", f"{slower:.2f}", f"{until:.2f}", f"{memory[way]['rise'] / 1e9:.2f}"),
        ]
        print(f"| {' | '.join(cells)} |")
    print(f"\n{memory['torch.save']['parameters'] / 1e6:.1f} million parameters with AdamW, float32, one thread.")


if __name__ == "__main__":
    main()
