"""Decisions of single processes become decisions of all, after the same step."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fates import Crew
from support.processes import together
from torch import distributed as dist

from flambeau.errors import FlambeauError
from flambeau.runtime import agreement
from flambeau.runtime.agreement import Agreement
from flambeau.runtime.pulse import Board, Pulse, Section
from flambeau.runtime.signals import StopSignals
from flambeau.runtime.world import World, current_world, leave_world

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nobody_waits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In simulations."""
    if "tmp_path" not in request.fixturenames:
        monkeypatch.setattr(agreement, "PATIENCE", 0.0)


class Wall:
    """A board in memory."""

    def __init__(self) -> None:
        self.messages: dict[str, str] = {}
        self.counters: dict[str, int] = {}

    def post(self, key: str, value: str) -> None:
        self.messages[key] = value

    def read(self, key: str) -> str | None:
        return self.messages.get(key)

    def add(self, key: str, amount: int) -> int:
        self.counters[key] = self.counters.get(key, 0) + amount
        return self.counters[key]

    def claim(self, key: str, value: str) -> str:
        return self.messages.setdefault(key, value)


class Beat:
    """A pulse that beats when it is told to."""

    def __init__(self, wall: Wall, rank: int, size: int) -> None:
        self.world = World(rank, size)
        self.look: Callable[[], None] = lambda: None
        self._wall = wall

    def section(self, name: str) -> Board:
        return Section(self._wall, name)

    def listen(self, listener: Callable[[], None]) -> None:
        self.look = listener


class Machine:
    """One process of a simulated job: a host that hands out steps, and a device that does them later.

    A step is done on a device when all devices have begun it: they exchange gradients in it.
    """

    def __init__(self, wall: Wall, rank: int, size: int) -> None:
        self.pulse: Any = Beat(wall, rank, size)
        self.agreement = Agreement(self.pulse, CPU)
        self.handed = 0
        """Steps that the host has handed out; it stands at the boundary after the last of them."""
        self.looked = 0
        """Boundaries at which the host has asked what is due."""
        self.done = 0
        """Steps that the device has done."""
        self.acted: list[tuple[int, dict[str, str]]] = []
        self.left = False

    @property
    def begun(self) -> int:
        """The last step that the device works at; it waits for the others in it."""
        return min(self.done + 1, self.handed)


class Job:
    """A simulated job; `happen(k)` lets the k-th of the things happen that can happen now."""

    def __init__(self, size: int, last_step: int, ahead: int) -> None:
        wall = Wall()
        self.machines = [Machine(wall, rank, size) for rank in range(size)]
        self.last_step = last_step
        self.ahead = ahead
        """Steps that a host may be ahead of its device."""

    def possible(self) -> list[tuple[Callable[[Machine], None], Machine]]:
        events: list[tuple[Callable[[Machine], None], Machine]] = []
        for machine in self.machines:
            if not machine.left:
                events.append((self.look, machine))
                waits = machine.agreement.pending and machine.done < machine.handed
                if machine.looked < machine.handed:
                    if not waits:
                        events.append((self.boundary, machine))
                elif machine.handed < self.last_step and machine.handed - machine.done <= self.ahead:
                    events.append((self.hand_out, machine))
            if machine.done < machine.handed and all(other.begun > machine.done for other in self.machines):
                events.append((self.complete, machine))
        return events

    def look(self, machine: Machine) -> None:
        machine.pulse.look()

    def hand_out(self, machine: Machine) -> None:
        machine.handed += 1

    def complete(self, machine: Machine) -> None:
        machine.done += 1

    def boundary(self, machine: Machine) -> None:
        machine.looked += 1
        if decisions := dict(machine.agreement.due(machine.looked)):
            machine.acted.append((machine.looked, decisions))
            machine.left = "preempt" in decisions
        machine.left = machine.left or machine.looked == self.last_step

    def run_out(self) -> None:
        """To the end, in turn."""
        for turn in range(100_000):
            events = self.possible()
            if all(machine.left for machine in self.machines):
                return
            happen, machine = events[turn % len(events)]
            happen(machine)
        raise AssertionError("the job does not end")


@settings(max_examples=400)
@given(data=st.data())
def test_all_act_alike_whatever_happens_when(data: st.DataObject) -> None:
    """Any order of looks, boundaries, devices that lag behind, and requests from any process at any time."""
    size = data.draw(st.integers(2, 4))
    job = Job(size, last_step=data.draw(st.integers(1, 12)), ahead=data.draw(st.integers(0, 3)))
    chance = random.Random(data.draw(st.integers(0, 2**32)))
    shares = [chance.random() ** 2 + 0.01 for _ in range(4 * size)]  # some processes and kinds of events are slow
    for _ in range(data.draw(st.integers(0, 300))):
        if chance.random() < 0.02:
            machine = chance.choice(job.machines)
            machine.agreement.request(chance.choice(["save", "stop", "preempt"]), f"rank {machine.pulse.world.rank}")
        if events := job.possible():
            kinds = [job.look, job.boundary, job.hand_out, job.complete]
            weights = [shares[4 * machine.pulse.world.rank + kinds.index(kind)] for kind, machine in events]
            happen, machine = chance.choices(events, weights)[0]
            happen(machine)
    job.run_out()
    first = job.machines[0]
    for machine in job.machines:
        assert machine.acted == first.acted
        assert machine.looked == first.looked, "all leave after the same step"


@given(size=st.integers(1, 4), kinds=st.lists(st.sampled_from(["save", "stop", "checkpoint"]), min_size=1))
def test_what_is_asked_for_is_decided_once(size: int, kinds: list[str]) -> None:
    """Each kind, with the reason that was given first, if there are steps enough."""
    job = Job(size, last_step=20, ahead=0)
    for number, kind in enumerate(kinds):
        job.machines[number % size].agreement.request(kind, f"reason {number}")
    job.run_out()
    for machine in job.machines:
        [(_, decisions)] = machine.acted
        assert decisions.keys() == set(kinds)
        for kind, reason in decisions.items():
            assert kinds[int(reason.removeprefix("reason "))] == kind


def test_what_is_asked_for_meanwhile_is_decided_next() -> None:
    """A request after its process is armed is not lost."""
    job = Job(2, last_step=20, ahead=0)
    first, second = job.machines
    first.agreement.request("save", "clock")
    job.look(first)
    job.look(second)
    job.hand_out(second)
    job.hand_out(first)
    job.complete(first)
    job.complete(second)
    job.boundary(second)
    second.agreement.request("stop", "late")
    job.run_out()
    assert [decisions for _, decisions in first.acted] == [{"save": "clock"}, {"stop": "late"}]
    assert first.acted == second.acted


def test_one_process_acts_at_once() -> None:
    """After the very step, without a thread."""
    agreed = Agreement(Pulse(World()), CPU)
    assert agreed.due(1) == {}
    agreed.request("save", "clock")
    agreed.request("stop", "enough")
    assert agreed.due(2) == {"save": "clock", "stop": "enough"}
    assert agreed.due(3) == {}


def test_steps_that_do_not_exchange_gradients_are_an_error() -> None:
    """A process that is past the agreed step says so; it does not act later than the others."""
    job = Job(2, last_step=20, ahead=0)
    first, second = job.machines
    first.agreement.request("save", "clock")
    job.look(first)
    job.look(second)
    second.agreement.due(1)
    first.agreement.due(1)
    with pytest.raises(FlambeauError, match="agreed to act after step 2, and this one is past step 5"):
        second.agreement.due(5)


def train(steps: int, seed: int, *, pause: float) -> list[Any]:
    """What a process did, and after which step: a gradient exchange a step, at its own pace."""
    chance = random.Random(f"{seed} {current_world().rank}")
    acted: list[Any] = []
    with Pulse(current_world()) as pulse, StopSignals() as signals:
        agreed = Agreement(pulse, CPU)
        agreed.hear("preempt", lambda: signals.received)
        print("training", flush=True)
        for step in range(1, steps + 1):
            time.sleep(pause * chance.random())
            dist.all_reduce(torch.zeros(4))
            if decisions := dict(agreed.due(step)):
                acted.append([step, decisions])
            if "preempt" in decisions:
                break
            if chance.random() < 0.02:
                agreed.request("save", "clock")
        agreed.close()
    return acted


def train_and_tell(seed: int) -> int:
    acted = train(100_000, seed, pause=0.004)
    print(f"acted {acted}", flush=True)
    current_world().barrier()
    leave_world()
    return 75


@pytest.mark.parametrize("size", [2, 3])
def test_sigterm_to_one_process_lets_all_leave_after_the_same_step(tmp_path: Path, size: int) -> None:
    """Whenever it comes, and while other things are being agreed."""
    chance = random.Random(size)
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        crew = Crew(folder, size, train_and_tell, attempt)
        crew.wait_for(0, "training")
        time.sleep(chance.random())
        crew.kill(chance.randrange(size), signal.SIGTERM)
        fates = crew.fates()
        assert [fate.status for fate in fates] == [75] * size
        assert len({fate.output.splitlines()[-1] for fate in fates}) == 1
        assert "'preempt': 'SIGTERM'" in fates[0].output


def test_with_long_steps_the_next_one_is_the_last(tmp_path: Path) -> None:
    """A signal in the middle of a step is heard at once: little time may be left."""
    for fate in Crew(tmp_path, 2, train_slowly).fates():
        assert fate.status == 0
        assert fate.output.split() == ["step", "1", "step", "2", "step", "3", "left"]


def train_slowly() -> None:
    with Pulse(current_world()) as pulse, StopSignals() as signals:
        agreed = Agreement(pulse, CPU)
        agreed.hear("preempt", lambda: signals.received)
        for step in range(1, 100):
            for moment in range(150):
                time.sleep(0.01)
                if (step, moment, current_world().rank) == (2, 10, 1):
                    os.kill(os.getpid(), signal.SIGTERM)
            dist.all_reduce(torch.zeros(4))
            print("step", step, flush=True)
            if agreed.due(step):
                break
        print("left", flush=True)
        current_world().barrier()
    leave_world()


def test_a_run_that_ends_meanwhile_just_ends() -> None:
    """Requests shortly before the last step are decided by all or by none; nobody waits."""
    for seed in range(3):
        acted = together(2, _short, seed)
        assert acted[0] == acted[1]


def _short(seed: int) -> list[Any]:
    acted = train(40, seed, pause=0.02)
    current_world().barrier()
    return acted
