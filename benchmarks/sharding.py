"""What a model in pieces costs beside its training: saves, reading back, an export, and weights made without memory.

   python -m benchmarks.sharding                      # two processes on the CPU; a minute or two and 5 GB of disk
   python -m benchmarks.sharding --folder /mnt/x      # on another disk

100.8 million parameters with AdamW (1.21 GB) in two processes of one thread. Each process has half of it; the
reference is `torch.save` of that half.
"""

from __future__ import annotations

import argparse
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

from benchmarks.harness import ENVIRONMENT, ROOT
from flambeau.checkpoint.export import export_safetensors
from flambeau.checkpoint.sharded_store import ShardedStore
from flambeau.config.sections import CheckpointSettings, FsdpSettings, TrainerSettings
from flambeau.distributed.deferred import build_on_meta
from flambeau.distributed.sharding import layout_of, prepare_model
from flambeau.runtime.shards import local_part
from flambeau.runtime.world import World, current_world, leave_world

WIDTH, LAYERS, ROUNDS = 1024, 24, 6


def build() -> nn.Module:
    """The model of `benchmarks.checkpoints`, in an order of calls."""
    torch.manual_seed(0)
    layers = (nn.Sequential(nn.LayerNorm(WIDTH), *(nn.Linear(WIDTH, WIDTH) for _ in range(4))) for _ in range(LAYERS))
    return nn.Sequential(*layers)


def timed(world: World, work: Callable[[], object]) -> float:
    """Seconds that something takes the slowest process."""
    world.barrier()
    start = time.perf_counter()
    work()
    return float(max(world.gather(time.perf_counter() - start)))


def measure(folder: Path) -> None:
    world, device = current_world(), torch.device("cpu")
    settings = TrainerSettings(fsdp=FsdpSettings(blocks=["Linear"], meta_init=True), steps=1)
    found: dict[str, list[float]] = {}

    def note(what: str, work: Callable[[], object]) -> None:
        found.setdefault(what, []).append(timed(world, work))

    note("the model, built in memory", build)
    built = []
    note("the same without memory: recorded", lambda: built.append(build_on_meta(build)))
    model, weights = built[0]
    note(
        "the same without memory: sharded and filled",
        lambda: prepare_model(model, settings, world, device, weights),
    )
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    store = ShardedStore(folder / "checkpoints", settings=CheckpointSettings(keep_last=1), warn=print, world=world)

    def state() -> dict[str, object]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    def pieces() -> list[torch.Tensor]:
        moments = (value for entry in optimizer.state.values() for value in entry.values())
        return [local_part(tensor).detach() for tensor in (*model.parameters(), *moments)]

    for number in range(1, ROUNDS + 1):
        start = time.perf_counter()
        note("a save: the training stands still", lambda number=number: store.save(number, state()))
        store.wait()
        found.setdefault("a save: until it is on disk", []).append(time.perf_counter() - start)
        note("torch.save of a process's half", lambda: torch.save(pieces(), folder / f"rank-{world.rank}.pt"))
    newest = store.newest()
    assert newest is not None
    note("reading back: verified, the work shared", store.newest)
    note("reading back: each its pieces", lambda: newest.load(like=layout_of(model, optimizer)))
    if world.is_main:
        found["reading back: all of it, in one process"] = [timed(World(), newest.load)]
        export = timed(World(), lambda: export_safetensors(newest, "model", folder / "model.safetensors"))
        found["flambeau export"] = [export]
        print("| | s |\n|---|---|")
        for what, seconds in found.items():
            several = seconds[1:] or seconds
            spread = f" ({min(several):.2f} to {max(several):.2f})" if len(several) > 1 else ""
            first = f", the first {seconds[0]:.2f}" if len(several) > 1 else ""
            print(f"| {what} | {statistics.median(several):.2f}{spread}{first} |")
    store.close()
    world.barrier()
    leave_world()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to write to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        measure(arguments.folder)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [sys.executable, *torchrun, "-m", "benchmarks.sharding", "--folder", folder]
        subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, check=True)


if __name__ == "__main__":
    main()
