"""A run may be killed at any instant; resumed, it ends with the bits of the run that never was.

Real processes, real signals. The instants come from a seeded generator; its seed is in the test's name and output.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.projects import Project
from support.states import assert_same_runs

PACE = 0.01
"""Seconds that a step takes at least, so that an instant within the run can be hit."""

EVERYTHING = (
    "data.jitter=0.1",
    "trainer.ema={decay: 0.9}",
    "trainer.clip_norm=1.0",
    "trainer.early_stopping={patience: 1000}",
    "checkpoint.every_steps=3",
)
"""Augmentation (with all three generators), dropout and batch normalisation, average, patience, frequent saves."""


class Killer:
    """Starts and resumes one run, killing it again and again.

    Args:
        seed: of the instants.
        last: the latest instant, in seconds after a session's first step.
    """

    def __init__(self, project: Project, *, seed: int, last: float) -> None:
        self.project, self.last = project, last
        self.instants = random.Random(seed)
        self.beacon = project.root / "beacon"
        self.run_dir = project.root / "killed"
        self.inside_a_save = 0
        print(f"seed of the instants: {seed}")

    def session(self, *arguments: str, end: Callable[[subprocess.Popen[str]], None]) -> tuple[int, str]:
        """One process, ended by `end` at some instant after its first step."""
        self.beacon.unlink(missing_ok=True)
        process = self.project.start(*arguments, env={"BEACON": str(self.beacon), "PACE": str(PACE)})
        deadline = time.monotonic() + 60
        while not self.beacon.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        end(process)
        status = process.wait(timeout=60)
        self.inside_a_save += any(self.run_dir.glob("checkpoints/.tmp-*"))
        return status, self.project.output.read_text()

    def at_random(self, process: subprocess.Popen[str]) -> None:
        time.sleep(self.instants.uniform(0.0, self.last))
        process.kill()

    def in_a_save(self, process: subprocess.Popen[str]) -> None:
        """Kill while a checkpoint is being written."""
        deadline = time.monotonic() + 5
        while not any(self.run_dir.glob("checkpoints/.tmp-*")) and time.monotonic() < deadline:
            pass
        process.kill()

    def to_the_end(self, kills: int, train: tuple[str, ...], resume: tuple[str, ...] = ()) -> None:
        """Train, kill and resume `kills` times, then let the run end."""
        path = str(self.run_dir)
        arguments = ("train", "tiny", "--run-dir", path, *train)
        for kill in range(kills):
            status, output = self.session(*arguments, end=self.in_a_save if kill % 4 == 1 else self.at_random)
            assert status == -signal.SIGKILL, f"kill {kill}: {output}"
            arguments = ("resume", path, *resume)
        status, output = self.session(*arguments, end=lambda process: None)
        assert status == 0, output
        print(f"{kills} kills, {self.inside_a_save} of them within a save")


def straight(project: Project, *arguments: str) -> Path:
    """The run that nobody kills."""
    project.run("train", "tiny", "--run-dir", "straight", *arguments)
    return project.root / "straight"


def test_a_run_killed_three_times_ends_with_the_same_bits(tmp_path: Path) -> None:
    """The short form of what follows, for every day."""
    project = Project.write(tmp_path / "project")
    arguments = (*EVERYTHING, "trainer.epochs=3")
    whole = straight(project, *arguments)
    killer = Killer(project, seed=1, last=0.06)
    killer.to_the_end(3, arguments)
    assert_same_runs(whole, killer.run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [20])
def test_a_run_killed_twenty_times_ends_with_the_same_bits(tmp_path: Path, seed: int) -> None:
    """Every fourth kill hits within a save; the others hit anywhere."""
    project = Project.write(tmp_path / "project")
    arguments = (*EVERYTHING, "trainer.epochs=16")  # 192 steps of 10 ms: twenty kills within 90 ms do not reach its end
    whole = straight(project, *arguments)
    killer = Killer(project, seed=seed, last=0.09)
    killer.to_the_end(20, arguments)
    assert_same_runs(whole, killer.run_dir)
    assert killer.inside_a_save, "no kill hit within a save: the test proves less than it says"
    one, other = (json.loads((run / "status.json").read_text()) for run in (whole, killer.run_dir))
    assert {key: one[key] for key in ("state", "step", "best")} == {
        key: other[key] for key in ("state", "step", "best")
    }


VARIANTS = {
    "two workers": (("data.workers=2",), ()),
    "another number of workers at the resume": ((), ("data.workers=2",)),
    "accumulation": (("trainer.accumulate=2",), ()),
    "no randomness but the order": (("data.jitter=0", "model.dropout=0.0", "trainer.ema=null"), ()),
    "iteration by steps, sgd with momentum": (
        ("trainer.steps=100", "trainer.epochs=null", "optimizer={name: sgd, lr: 0.1, momentum: 0.9}"),
        (),
    ),
    "fp16 with a loss scaler": (("trainer.precision=fp16",), ()),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_runs_of_other_settings_end_with_the_same_bits(tmp_path: Path, variant: str) -> None:
    """Five kills each. The run that is not killed has no workers, so their number is shown to change nothing too."""
    project = Project.write(tmp_path / "project")
    train, resume = VARIANTS[variant]
    arguments = (*EVERYTHING, "trainer.epochs=8", *train)
    whole = straight(project, *arguments, "data.workers=0")
    killer = Killer(project, seed=len(variant), last=0.12)
    killer.to_the_end(5, arguments, resume)
    assert_same_runs(whole, killer.run_dir)


@pytest.mark.slow
def test_a_kill_before_the_first_checkpoint_begins_anew_in_the_same_folder(tmp_path: Path) -> None:
    """There is nothing to go on from, and the record begins at its beginning again."""
    project = Project.write(tmp_path / "project")
    arguments = (*EVERYTHING, "trainer.epochs=2", "checkpoint.every_steps=null", "checkpoint.every_epochs=2")
    whole = straight(project, *arguments)
    killer = Killer(project, seed=5, last=0.05)
    killer.to_the_end(2, arguments)
    assert_same_runs(whole, killer.run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [6])
def test_a_kill_while_the_process_starts_costs_nothing(tmp_path: Path, seed: int) -> None:
    """Before the first step: while modules are imported, data is built, or the checkpoint is loaded."""
    project = Project.write(tmp_path / "project")
    arguments = (*EVERYTHING, "trainer.epochs=3")
    whole = straight(project, *arguments)
    killer = Killer(project, seed=seed, last=0.1)
    assert killer.session("train", "tiny", "--run-dir", str(killer.run_dir), *arguments, end=killer.at_random)[0] < 0
    for _ in range(4):
        process = project.start("resume", killer.run_dir)
        time.sleep(killer.instants.uniform(0.1, 1.8))
        process.kill()
        process.wait()
    if json.loads((killer.run_dir / "status.json").read_text())["state"] != "finished":
        project.run("resume", killer.run_dir)
    assert_same_runs(whole, killer.run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_preempted_by_sigterm_ends_with_the_same_bits(tmp_path: Path, workers: int) -> None:
    """The signal goes to every process of the run, as schedulers send it; the step is finished and saved."""
    project = Project.write(tmp_path / "project")
    arguments = (*EVERYTHING, "trainer.epochs=6", f"data.workers={workers}")
    whole = straight(project, *arguments)
    killer = Killer(project, seed=7, last=0.1)

    def terminate(process: subprocess.Popen[str]) -> None:
        time.sleep(killer.instants.uniform(0.0, killer.last))
        os.killpg(process.pid, signal.SIGTERM)

    call: tuple[str, ...] = ("train", "tiny", "--run-dir", str(killer.run_dir), *arguments)
    for _ in range(4):
        status, output = killer.session(*call, end=terminate)
        assert status == 75, output
        record = json.loads((killer.run_dir / "status.json").read_text())
        assert record["state"] == "preempted"
        assert f"flambeau resume {killer.run_dir}" in record["next"]
        call = ("resume", str(killer.run_dir))
    status, output = killer.session(*call, end=lambda process: None)
    assert status == 0, output
    assert_same_runs(whole, killer.run_dir)
