"""A course of training that several machines run, and whether they ran it right."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machines import Machine, Process, until
from support.projects import Project
from support.states import final_state

TOLERANCE = 1e-10
"""Of sums that were added up in another order, in float64, relative to the largest of a tensor."""

PARTS = '''

import json
from pathlib import Path

from flambeau import Trainer


@register.trainer("recorded")
class Recorded(Trainer):
    """Writes down which samples this process trained on."""

    def advance(self, batch):
        super().advance(batch)
        rank, size = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
        line = {"step": self.state.step, "rank": rank, "size": size, "ids": batch.ids.tolist()}
        with Path(os.environ["RECORD"]).open("a") as file:
            file.write(json.dumps(line) + "\\n")


@register.callback("pace")
class Pace(Callback):
    """Takes as many seconds for a step as a file says at that moment."""

    def on_step_end(self, trainer):
        time.sleep(float(Path(os.environ["PACE_FILE"]).read_text()))
'''

# 90 samples in batches of 8: the last of an epoch has two, fewer than there are processes.
CONFIG = """\
seed: 3
data: {name: points, batch_size: 8, size: 90}
model: {name: dropnet, num_classes: "${data.num_classes}", dropout: 0.0}
criterion: {name: cross_entropy}
optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
scheduler: {name: cosine, warmup_steps: 5}
trainer: {name: recorded, epochs: 4, log_every: 5, precision: fp64, clip_norm: 1.0, ema: {decay: 0.9}}
checkpoint: {every_steps: 3}
metrics: {accuracy: {}}
callbacks: {pace: {}}
"""
STEPS = 48

SLOW = 0.2
"""Seconds a step while something is to happen to the run."""

CRAWL = 1.5
"""Seconds a step while processes start, which takes some seconds: the run is not to end meanwhile."""


@dataclass(frozen=True)
class Session:
    """One run of the course, in a folder that all machines see.

    Attributes:
        reference: the same course, run by one process that nothing happened to.
    """

    project: Project
    run_dir: Path
    reference: Session | None = None

    @classmethod
    def prepare(cls, project: Project, name: str, reference: Session | None = None) -> Session:
        """A session of a project, not started yet."""
        session = cls(project, project.root / name, reference)
        session.set_pace(0)
        return session

    def start(self, machine: Machine, *launcher: str | Path, env: Mapping[str, str] | None = None) -> Process:
        """Run a launcher's command on a machine."""
        return machine.start(*launcher, folder=self.project.root, env={**self.variables, **(env or {})})

    @property
    def variables(self) -> dict[str, str]:
        return {"RECORD": str(self._beside("record.jsonl")), "PACE_FILE": str(self._beside("pace"))}

    @property
    def arguments(self) -> tuple[str, ...]:
        """`train tiny` in this session's folder."""
        return ("train", "tiny", "--run-dir", str(self.run_dir))

    def set_pace(self, seconds: float) -> None:
        """Say how long a step takes at least, from now on."""
        beside = self._beside("pace")
        aside = beside.with_suffix(".new")
        aside.write_text(str(seconds))
        aside.replace(beside)

    @property
    def saved(self) -> int:
        """The step of the newest checkpoint; 0 without one."""
        return max((int(path.name[5:]) for path in self.run_dir.glob("checkpoints/step-*")), default=0)

    def wait_for_save(self, *watched: Process, after: int = 0) -> int:
        """Wait until a checkpoint of a step after `after` is there; its step."""
        until(lambda: self.saved > after, f"a checkpoint after step {after}", watched=watched)
        return self.saved

    def wait_until(self, holds: Callable[[], bool], what: str, *watched: Process) -> None:
        """Wait for something that processes do."""
        until(holds, what, watched=watched)

    def status(self) -> dict[str, Any]:
        """What `status.json` says."""
        return json.loads((self.run_dir / "status.json").read_text())

    def sizes(self) -> list[int]:
        """How many processes trained at a time, in the order of events."""
        sizes = [line["size"] for line in self.record()]
        return [size for place, size in enumerate(sizes) if place == 0 or sizes[place - 1] != size]

    def record(self) -> list[dict[str, Any]]:
        """Which process of how many trained on which samples at which step."""
        return [json.loads(line) for line in self._beside("record.jsonl").read_text().splitlines()]

    def check(self) -> None:
        """The run is finished, and is the reference's: samples, scores and weights."""
        assert self.reference is not None
        status = self.status()
        assert (status["state"], status["step"]) == ("finished", STEPS)
        self._check_samples()
        self._check_scores()
        difference = self.difference(self.reference)
        print(f"{self.run_dir.name}: weights differ by {difference:.1e}, relative")
        assert difference < TOLERANCE

    def difference(self, other: Session) -> float:
        """The largest relative difference between the final weights, and their averages, of two runs."""
        one, two = (dict(_tensors(final_state(session.run_dir))) for session in (self, other))
        assert one.keys() == two.keys()
        return max(
            float((one[name].double() - two[name].double()).abs().max() / two[name].double().abs().max().clamp(1e-300))
            for name in one
            if name.startswith(("model", "ema"))
        )

    def _check_samples(self) -> None:
        """Each process had its share of each batch, and of each step all shares were trained on."""
        assert self.reference is not None
        batches = {line["step"]: line["ids"] for line in self.reference.record()}
        assert sorted(batches) == list(range(1, STEPS + 1))
        trained: dict[int, dict[int, set[int]]] = {step: {} for step in batches}
        for line in self.record():
            step, rank, size = line["step"], line["rank"], line["size"]
            each, larger = divmod(len(batches[step]), size)
            start = each * rank + min(rank, larger)
            assert line["ids"] == batches[step][start : start + each + (rank < larger)], line
            trained[step].setdefault(size, set()).add(rank)
        for step, sizes in trained.items():
            assert any(ranks == set(range(size)) for size, ranks in sizes.items()), f"step {step}: {sizes}"

    def _check_scores(self) -> None:
        """The record has each entry once, and in each the reference's values."""
        assert self.reference is not None
        ours, theirs = (
            [json.loads(line) for line in (session.run_dir / "metrics.jsonl").read_text().splitlines()]
            for session in (self, self.reference)
        )
        assert [(line["step"], list(line)) for line in ours] == [(line["step"], list(line)) for line in theirs]
        for one, other in zip(ours, theirs, strict=True):
            for name, value in other.items():
                assert abs(one[name] - value) <= 1e-9 * max(abs(value), 1.0), (one["step"], name, one[name], value)

    def _beside(self, kind: str) -> Path:
        return self.run_dir.with_name(f"{self.run_dir.name}-{kind}")


Hosts = tuple[Machine, Machine]


def start_both(
    session: Session,
    hosts: Hosts,
    *options: str,
    processes: tuple[int, int] = (1, 1),
    nodes: str = "2",
    command: tuple[str, ...] | None = None,
) -> list[Process]:
    """`flambeau train` (or another command) on both machines, one process on each if nothing is said."""
    command = (*(command or session.arguments), *options)
    return [
        start_on(session, host, number, *command, processes=processes[number], nodes=nodes)
        for number, host in enumerate(hosts)
    ]


def start_on(
    session: Session, host: Machine, number: int, *command: str, processes: int = 1, nodes: str = "2"
) -> Process:
    """A command of `flambeau` on one of the machines, or on it alone."""
    machines = ("--nodes", nodes, "--node-rank", str(number), "--master", "h1:29400") if nodes != "1" else ()
    here = ("-d", "cpu", "--processes", str(processes), *machines)
    return session.start(host, sys.executable, "-m", "flambeau", *command, *here)


def expect(status: int, *processes: Process) -> None:
    """Wait for the end of processes, with this status."""
    for process in processes:
        process.expect(status)


def torchrun(*arguments: str) -> tuple[str, ...]:
    """`torchrun ARGUMENTS`, of this environment."""
    return (sys.executable, "-m", "torch.distributed.run", *arguments)


def _tensors(value: Any, place: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a nested state with their places."""
    if isinstance(value, torch.Tensor):
        yield place.removeprefix("."), value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _tensors(item, f"{place}.{number}")
