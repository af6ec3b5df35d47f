"""One of two processes that train LeNet together, for `benchmarks.ddp`: in turns that the parent gives.

The gate sits in the model, as the clock of the other benchmarks does: at each training forward pass that begins a turn
the process tells its times and waits until it may go on. So one fit serves for all turns, and nothing of an engine's
set-up is in them.
"""

from __future__ import annotations

import cProfile
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from benchmarks.clock import Clock
from benchmarks.contenders.flambeau import normalise, tensorboard
from benchmarks.tasks import OPTIMIZER, TASKS, Batch, Task
from flambeau import Trainer
from flambeau.data import ArrayDataset
from flambeau.metrics import Accuracy

WARM_UP_STEPS = 60


class Gate(Clock):
    """Stops at every `steps`-th training forward pass, tells the times since the last stop, and waits."""

    def __init__(self, steps: int, requests: Any, answers: Any) -> None:
        super().__init__(0, 0)
        self._every = steps
        self._left = WARM_UP_STEPS
        self._requests = requests
        self._answers = answers
        self._profile: cProfile.Profile | None = None
        self._stats = ""
        self._begun: tuple[float, float] | None = None

    def tick(self) -> None:
        if self._left:
            self._left -= 1
            return
        self._left = self._every - 1
        self._stop()

    def _stop(self) -> None:
        if self._begun is not None:
            wall, cpu = time.perf_counter() - self._begun[0], time.process_time() - self._begun[1]
            if self._profile is not None:
                self._profile.disable()
                self._profile.dump_stats(self._stats)
                self._profile = None
            print(json.dumps({"wall_s": wall / self._every, "cpu_s": cpu / self._every}), file=self._answers)
        line = self._requests.readline()
        if not line:
            os._exit(0)  # the parent has seen enough
        request = json.loads(line)
        if "profile" in request:
            self._stats, self._profile = request["profile"], cProfile.Profile()
            self._profile.enable()
        self._begun = time.perf_counter(), time.process_time()


def bare(task: Task, model: nn.Module, variant: str) -> None:
    """The script that a careful person writes: sliced batches, fused AdamW, no waiting for the loss."""
    dist.init_process_group("gloo")
    options: dict[str, dict[str, Any]] = {
        "bucket_view": {"gradient_as_bucket_view": True},
        "static_graph": {"static_graph": True},
        "both": {"gradient_as_bucket_view": True, "static_graph": True},
    }
    replica: nn.Module = model
    if variant != "apart":
        replica = DistributedDataParallel(model, **options.get(variant, {}))
    optimizer, criterion = torch.optim.AdamW(model.parameters(), **OPTIMIZER), nn.CrossEntropyLoss()
    batches = loaded(task) if variant == "loader" else sliced(task)
    model.train()
    for inputs, targets in batches:
        loss = criterion(replica(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def sliced(task: Task) -> Iterator[Batch]:
    """This process's half of each batch, in a new order every epoch."""
    rank, epoch = dist.get_rank(), 0
    while True:
        order = torch.randperm(len(task.targets), generator=torch.Generator().manual_seed(epoch))
        for rows in torch.split(order, task.batch_size):
            share = rows.tensor_split(dist.get_world_size())[rank]
            yield task.normalise(task.inputs[share]), task.targets[share]
        epoch += 1


def loaded(task: Task) -> Iterator[Batch]:
    """As most people write it: DataLoader and DistributedSampler over a dataset that normalises each image."""
    dataset: Any = task.dataset()
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, shuffle=True)
    loader: Iterable[Any] = DataLoader(dataset, task.batch_size // dist.get_world_size(), sampler=sampler)
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def flambeau(task: Task, model: nn.Module, variant: str) -> None:
    quiet = variant == "quiet"
    folder = Path(os.environ["BENCHMARK_FOLDER"])
    Trainer(
        model,
        ArrayDataset(task.inputs, task.targets),
        nn.CrossEntropyLoss(),
        torch.optim.AdamW(model.parameters(), **OPTIMIZER),
        metrics={"accuracy": Accuracy()},
        trackers=() if quiet else tensorboard,
        batch_transform=normalise(task),
        run_dir=None if quiet else folder / "run",
        device="cpu",
        batch_size=task.batch_size,
        progress=not quiet,
        epochs=10**6,
        static_graph=variant == "static_graph",
    ).fit()


FITS: dict[str, Callable[[Task, nn.Module, str], None]] = {"bare": bare, "flambeau": flambeau}


def main() -> None:
    contender, variant, task_name, steps, request_fd, answer_fd = sys.argv[1:]
    torch.set_num_threads(1)
    task = TASKS[task_name]()
    with os.fdopen(int(request_fd)) as requests, os.fdopen(int(answer_fd), "w", buffering=1) as answers:
        torch.manual_seed(0)
        model = task.model(Gate(int(steps), requests, answers))
        FITS[contender](task, model, variant)


if __name__ == "__main__":
    main()
