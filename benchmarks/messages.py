"""What processes that train together say to each other: counted in a small run of two, and in gloo's own start.

A message's length and number are facts of the code, not of the machine: they are counted here, with the run's real
calls, and docs/scaling.md puts them into formulas.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import free_port
from flambeau import Trainer
from flambeau.data import ArrayDataset
from flambeau.metrics import Accuracy
from flambeau.runtime.pulse import StoreBoard
from flambeau.runtime.world import World, current_world, leave_world

STEPS = 40
SECONDS = 4


class Ear:
    """Counts by phase of the run: collectives of every thread, the bytes of control messages, words on the board."""

    def __init__(self) -> None:
        self.phase = "start"
        self.counts: dict[str, Counter[str]] = {}
        self.times = Counter[str]()
        self._wrap(World, "gather_bytes", "gathered bytes", lambda world, data: len(data))
        self._wrap(World, "gather_bytes", "gathers", lambda world, data: 1)
        self._wrap(World, "broadcast", "broadcasts", lambda world, value: 1)
        for method in ("post", "read", "add", "claim"):
            self._wrap(StoreBoard, method, "words on the board", lambda *_: 1)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        self.times[phase] += 1
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            yield
        names = (event.name for event in profiler.events() or [])
        self._of(phase).update(name for name in names if name.startswith("c10d::"))
        self.phase = before

    def _of(self, phase: str) -> Counter[str]:
        return self.counts.setdefault(phase, Counter())

    def _wrap(self, owner: type, name: str, what: str, amount: Callable[..., int]) -> None:
        inner = getattr(owner, name)

        def wrapped(*arguments: Any) -> Any:
            self._of(self.phase)[what] += amount(*arguments)
            return inner(*arguments)

        setattr(owner, name, wrapped)


class Heard(Trainer):
    """A trainer whose phases are told apart."""

    ear: Ear

    def update(self, batch: Any) -> None:
        if self.state.step == STEPS // 2:
            self.rest()
        with self.ear.during("a step"):
            super().update(batch)

    def rest(self) -> None:
        """Some seconds in which only the threads do anything."""
        with self.ear.during("a second"):
            time.sleep(SECONDS)
        self.ear.times["a second"] = SECONDS

    def log(self) -> None:
        with self.ear.during("a log line"):
            super().log()

    def validate(self) -> dict[str, float]:
        with self.ear.during("a validation"):
            return super().validate()

    def save(self) -> None:
        with self.ear.during("a checkpoint"):
            super().save()


def listen(eval_batch_size: int) -> dict[str, dict[str, float]]:
    """Counts a phase in one of several processes: a fit with a run folder, of which rank 0's is everybody's."""
    ear = Ear()
    folder = Path(os.environ["BENCHMARK_FOLDER"])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    data = ArrayDataset(torch.rand(4096, 64), torch.randint(0, 10, (4096,)))
    trainer = Heard(
        model, data, nn.CrossEntropyLoss(), torch.optim.AdamW(model.parameters()), val_data=data,
        metrics={"accuracy": Accuracy()}, run_dir=folder / "run", device="cpu", batch_size=64, steps=STEPS,
        log_every=10, progress=False, eval_batch_size=eval_batch_size,
    )  # fmt: skip
    trainer.ear = ear
    trainer.fit()
    return {
        phase: {name: count / max(ear.times[phase], 1) for name, count in counts.items()}
        for phase, counts in ear.counts.items()
    }


def paces() -> dict[str, float]:
    """Microseconds of the fastest of many calls, in one of two processes that talk over loopback."""
    world = current_world()
    small, large = torch.zeros(1), torch.zeros(1 << 22)
    ways: dict[str, tuple[int, Callable[[], Any]]] = {
        "all-reduce of 4 bytes": (300, lambda: dist.all_reduce(small)),
        "all-reduce of 16.8 MB": (20, lambda: dist.all_reduce(large)),
        "`World.gather` of 50 bytes": (300, lambda: world.gather("x" * 48)),
        "broadcast of 16.8 MB": (20, lambda: dist.broadcast(large, 0)),
    }
    found = {}
    for name, (times, call) in ways.items():
        taken = []
        for _ in range(times):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        found[name] = 1e6 * min(taken)
    return found


def together(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(*arguments)` gives in each of `size` forked processes that form a world."""
    with tempfile.TemporaryDirectory(prefix="flambeau-benchmark-") as folder:
        port = free_port()
        fork = multiprocessing.get_context("fork")
        processes = [
            fork.Process(target=_child, args=(rank, size, port, folder, function, arguments), daemon=True)
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(size)]


def _child(
    rank: int, size: int, port: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "BENCHMARK_FOLDER": folder,
    }
    result = function(*arguments)
    leave_world()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(result))


class CountingStore(dist.Store):
    """A store that counts what gloo leaves in it and takes from it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = dist.HashStore()
        self.read = self.written = 0
        self._lock = threading.Lock()

    def set(self, key: str, value: Any) -> None:
        with self._lock:
            self.written += len(value)
        self.inner.set(key, value)

    def get(self, key: str) -> bytes:
        value: bytes = self.inner.get(key)
        with self._lock:
            self.read += len(value)
        return value

    def wait(self, keys: list[str], timeout: timedelta = timedelta(seconds=60)) -> None:
        self.inner.wait(keys, timeout)

    def check(self, keys: list[str]) -> bool:
        return bool(self.inner.check(keys))

    def add(self, key: str, amount: int) -> int:
        return int(self.inner.add(key, amount))


def mesh(ranks: int, *, lazy: bool) -> dict[str, float]:
    """A gloo group of `ranks` threads, after one gathering of all: what each rank has and did for it.

    Args:
        lazy: with `TORCH_GLOO_LAZY_INIT`: connections are made when they are first needed.
    """
    os.environ["TORCH_GLOO_LAZY_INIT"] = str(int(lazy))
    store = CountingStore()
    before = _descriptors(), _memory(), _threads()
    groups: list[Any] = [None] * ranks

    def join(rank: int) -> None:
        groups[rank] = dist.ProcessGroupGloo(store, rank, ranks, timedelta(seconds=60))

    def gather(rank: int) -> None:
        groups[rank].allgather([[torch.zeros(25) for _ in range(ranks)]], [torch.zeros(25)]).wait()

    start = time.perf_counter()
    _in_threads(ranks, join)
    joined = time.perf_counter() - start
    _in_threads(ranks, gather)
    found = {
        "ranks": ranks,
        "sockets and other descriptors": (_descriptors() - before[0]) / ranks,
        "threads": (_threads() - before[2]) / ranks,
        "memory, kB": (_memory() - before[1]) / ranks / 1e3,
        "left in the store, bytes": store.written / ranks,
        "read from the store, bytes": store.read / ranks,
        "seconds for all": joined,
    }
    for group in groups:
        group.shutdown()
    return found


def _in_threads(ranks: int, function: Callable[[int], None]) -> None:
    members = [threading.Thread(target=function, args=(rank,)) for rank in range(ranks)]
    for member in members:
        member.start()
    for member in members:
        member.join()


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def _memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def store_pace() -> Iterator[tuple[str, float]]:
    """Microseconds of a question to a TCP store on this machine: by one client, and the server's own share."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = dist.TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)
    count = 5_000
    for name, ask in (("add", lambda: client.add("counter", 1)), ("check", lambda: client.check(["nothing"]))):
        cpu, own, start = time.process_time(), time.thread_time(), time.perf_counter()
        for _ in range(count):
            ask()
        wall = (time.perf_counter() - start) / count
        served = (time.process_time() - cpu - (time.thread_time() - own)) / count
        yield f"{name}, from question to answer", wall * 1e6
        yield f"{name}, CPU time of the server", served * 1e6
