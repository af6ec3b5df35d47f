"""A job of several processes of which one raises, hangs or is gone ends soon, and says why."""

from __future__ import annotations

import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fates import Crew
from torch import distributed as dist

from flambeau.runtime import watchdog as module
from flambeau.runtime.pulse import Pulse
from flambeau.runtime.watchdog import Watchdog
from flambeau.runtime.world import World, current_world, leave_world

HERE = Path(__file__)
PATIENCE = 1.0
"""The timeout of the runs here, in seconds."""


def line_of(text: str) -> str:
    """`test_watchdog.py:12` for the line of this file that ends in the comment `text`."""
    numbers = [n for n, line in enumerate(HERE.read_text().split("\n"), 1) if line.endswith(f"# {text}")]
    return f"{HERE.name}:{numbers[0]}"


def note(why: str, text: str) -> bool:
    print(f"noted: {why}", flush=True)
    return False


def train(hook: Any, steps: int = 10, *, timeout: float | None = PATIENCE) -> int:
    """Steps with an exchange each, and a hook after each."""
    world = current_world()
    pulse = Pulse(world)
    dog = Watchdog(pulse, timeout, on_end=note)
    try:
        for step in range(1, steps + 1):
            dist.all_reduce(torch.zeros(4))
            print(f"step {step}", flush=True)
            dog.beat(f"step {step}")
            hook(world, step, dog)
    except BaseException as error:
        if (cause := dog.failed(error)) is not None:
            raise cause from error
        raise
    finally:
        dog.close()
    world.barrier()
    pulse.close()
    leave_world()
    return 0


def told(output: str) -> str:
    """What a process said at its end."""
    return output[output.index("error: ") :]


# ---------------------------------------------------------------- one that hangs


def barrier_on_rank_0(world: World, step: int, dog: Watchdog) -> None:
    if step == 3 and world.is_main:
        dist.barrier()  # alone


def test_a_barrier_that_only_rank_0_comes_to_is_named(tmp_path: Path) -> None:
    """With the line that called it, and where the others wait."""
    fates = Crew(tmp_path, 3, train, barrier_on_rank_0).fates()
    assert [fate.status for fate in fates] == [1, 1, 1]
    report = told(fates[0].output)
    assert re.search(rf"Rank 0: step 3, waits in barrier\n(?s:.*)> \S*{line_of('alone')} in barrier_on_rank_0", report)
    assert "Ranks 1-2: step 3, waits in all_reduce" in report
    assert "wait for each other in different places: rank 0 in barrier" in report
    assert "`if rank == 0:`" in report.splitlines()[-1]
    for fate in fates[1:]:
        assert re.fullmatch(
            r"error: rank \d ends: no progress for 1 s on rank \d; rank 0 tells .*\n", told(fate.output)
        )
    assert "noted: no progress for 1 s on rank" in fates[0].output


def sleep_on_rank_1(world: World, step: int, dog: Watchdog) -> None:
    if step == 3 and world.rank == 1:
        while True:
            time.sleep(0.01)  # for ever


def test_a_process_that_sleeps_is_what_is_missing(tmp_path: Path) -> None:
    """By rank and line; the others wait for it."""
    report = told(Crew(tmp_path, 3, train, sleep_on_rank_1).fates()[0].output)
    assert "Ranks 0, 2: step 3, waits in all_reduce" in report
    assert re.search(rf"Missing: rank 1 at \S*{line_of('for ever')} in sleep_on_rank_1; ", report.splitlines()[-1])


def say_and_wait(world: World, step: int, dog: Watchdog) -> None:
    time.sleep(0.05)


@pytest.mark.slow
def test_a_process_that_is_stopped_gives_no_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named; the others end, and it does too as soon as it runs again."""
    monkeypatch.setattr(module, "GATHER", 1.0)
    monkeypatch.setattr(module, "WORD_EVERY", 0.1)
    crew = Crew(tmp_path, 3, train, say_and_wait, 10_000)
    crew.wait_for(1, "step 3")
    crew.kill(1, signal.SIGSTOP)
    fates = crew.fates(but=1)
    assert [fate.status for fate in fates] == [1, -signal.SIGKILL, 1]
    report = told(fates[0].output)
    assert re.search(r"Rank 1: no sign of life; last heard of at (step \d+|the start)", report)
    assert report.splitlines()[-1].startswith("Missing: rank 1; it is stopped, dead, or on a machine that is gone")


def test_the_store_of_a_stopped_process_does_not_hold_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 holds it here: nobody can ask anybody, and each says where it is itself."""
    monkeypatch.setattr(module, "LAST_RESORT", 1.0)
    crew = Crew(tmp_path, 2, train, say_and_wait, 10_000)
    crew.wait_for(0, "step 3")
    crew.kill(0, signal.SIGSTOP)
    fate = crew.fates(but=0)[1]
    assert fate.status == 1
    assert "rank 1 ends: no progress for" in fate.output
    assert "rank 0 or its machine is stopped or out of reach\nRank 1: step" in fate.output
    assert "Missing" not in fate.output


def take_long(world: World, step: int, dog: Watchdog) -> None:
    if step == 3 and world.rank == 1:
        with dog.paused():
            time.sleep(4 * PATIENCE)
        print("slept", flush=True)


@pytest.mark.slow
def test_a_pause_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of the process that is paused nor of those that wait for it."""
    monkeypatch.setattr(module, "GATHER", 0.5)
    fates = Crew(tmp_path, 2, train, take_long).fates()
    assert [fate.status for fate in fates] == [0, 0]
    assert "slept" in fates[1].output


def stand_in_a_debugger(world: World, step: int, dog: Watchdog) -> None:
    if step == 3 and world.rank == 1:
        import pdb

        debugger = pdb.Pdb(stdin=Slow(), stdout=sys.stdout)
        debugger.set_trace(sys._getframe())


class Slow:
    """Somebody who thinks, and then types `continue`."""

    def readline(self) -> str:
        time.sleep(4 * PATIENCE)
        print("thought", flush=True)
        return "continue\n"


@pytest.mark.slow
def test_a_debugger_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may be looked at for as long as one likes."""
    monkeypatch.setattr(module, "GATHER", 0.5)
    fates = Crew(tmp_path, 2, train, stand_in_a_debugger).fates()
    assert [fate.status for fate in fates] == [0, 0]
    assert "thought" in fates[1].output


@pytest.mark.slow
def test_a_job_that_is_stopped_as_a_whole_goes_on(tmp_path: Path) -> None:
    """A scheduler may suspend it for longer than the timeout."""
    crew = Crew(tmp_path, 2, train, say_and_wait, 30)
    crew.wait_for(0, "step 3")
    for rank in (0, 1):
        crew.kill(rank, signal.SIGSTOP)
    time.sleep(2 * PATIENCE)
    for rank in (0, 1):
        crew.kill(rank, signal.SIGCONT)
    assert [fate.status for fate in crew.fates()] == [0, 0]


# ---------------------------------------------------------------- one that fails


def raise_on_rank_1(world: World, step: int, dog: Watchdog) -> None:
    if step == 3 and world.rank == 1:
        raise ValueError("no such colour")
    if step == 3 and world.rank == 2:
        time.sleep(60)  # in no collective that could fail


def test_all_end_soon_after_one_has_raised(tmp_path: Path) -> None:
    """Also one that waits in no collective operation; rank 0 tells the cause with its traceback."""
    begun = time.monotonic()
    fates = Crew(tmp_path, 3, train, raise_on_rank_1, timeout=None).fates(30)
    assert time.monotonic() - begun < 30
    assert [fate.status for fate in fates] == [1, 1, 1]
    assert fates[0].output.rstrip().endswith("ValueError: no such colour")
    assert "rank 1 failed: ValueError: no such colour\nTraceback" in fates[0].output
    assert "in raise_on_rank_1" in fates[0].output
    assert told(fates[2].output) == "error: rank 2 ends: rank 1 failed: ValueError: no such colour\n"
    assert fates[1].output.rstrip().endswith("ValueError: no such colour")


def raise_everywhere(world: World, step: int, dog: Watchdog) -> None:
    if step == 3:
        raise ValueError(f"no such colour on rank {world.rank}")


def test_where_all_raise_each_has_its_own_error(tmp_path: Path) -> None:
    """No process is ended in place of its own last words."""
    fates = Crew(tmp_path, 3, train, raise_everywhere).fates()
    for rank, fate in enumerate(fates):
        assert fate.output.rstrip().endswith(f"ValueError: no such colour on rank {rank}")


def test_a_killed_process_is_named_in_place_of_the_broken_connection(tmp_path: Path) -> None:
    """What gloo says is its consequence."""
    crew = Crew(tmp_path, 3, train, say_and_wait, 10_000)
    crew.wait_for(0, "step 3")
    crew.kill(1, signal.SIGKILL)
    fates = crew.fates()
    assert [fate.status for fate in fates] == [1, -signal.SIGKILL, 1]
    for rank in (0, 2):
        last = fates[rank].output.rstrip().splitlines()[-1]
        assert last.endswith(": no sign of life from rank 1: killed, stopped, or on a machine that is gone")


def test_the_process_that_holds_the_store_may_be_killed(tmp_path: Path) -> None:
    """Rank 0."""
    crew = Crew(tmp_path, 2, train, say_and_wait, 10_000)
    crew.wait_for(0, "step 3")
    crew.kill(0, signal.SIGKILL)
    fate = crew.fates()[1]
    assert fate.status == 1
    assert "OtherRankError: rank 0 or its machine is gone" in fate.output


def sleep_without_collective(world: World, step: int, dog: Watchdog) -> None:
    if step == 3:
        time.sleep(60)


def test_a_lost_store_ends_a_process_that_does_not_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its main thread is elsewhere."""
    monkeypatch.setattr(module, "LOST_GRACE", 0.5)
    crew = Crew(tmp_path, 2, train, sleep_without_collective, timeout=None)
    crew.wait_for(1, "step 3")
    crew.kill(0, signal.SIGKILL)
    fate = crew.fates(30)[1]
    assert fate.status == 1
    assert "error: rank 1 ends: rank 0 or its machine is gone" in fate.output


def fail_and_stay(world: World, step: int, dog: Watchdog) -> None:
    if step == 3 and world.rank == 1:
        dog.failed(ValueError("no such colour"))
        time.sleep(60)


def test_a_process_that_fails_and_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something at the end of a program may wait for what is gone."""
    monkeypatch.setattr(module, "FAILED_GRACE", 0.5)
    fates = Crew(tmp_path, 2, train, fail_and_stay, timeout=None).fates(30)
    assert [fate.status for fate in fates] == [1, 1]
    assert "rank 1 ends: it failed, and did not end by itself" in fates[1].output


# ---------------------------------------------------------------- one that is well


def test_a_run_that_goes_well_ends_well(tmp_path: Path) -> None:
    """And says nothing of this."""
    fates = Crew(tmp_path, 3, train, say_and_wait, 40).fates()
    assert [fate.status for fate in fates] == [0, 0, 0]
    assert all("error" not in fate.output for fate in fates)


def test_one_process_is_not_watched() -> None:
    """It has no thread, and nobody to tell."""
    dog = Watchdog(Pulse(World()), timeout=0.0)
    dog.beat("step 1")
    assert dog.failed(ValueError()) is None
    dog.close()
