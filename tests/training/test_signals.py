"""Signals finish the step, save, and leave as 'preempted'; a second Ctrl-C ends at once."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.projects import Project
from support.tasks import make_trainer

from flambeau import Callback, Trainer

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


class Signal(Callback):
    """Sends this process a signal within a step, more than once if asked."""

    def __init__(self, number: signal.Signals, *, at: int = 4, times: int = 1) -> None:
        self.number, self.at, self.times = number, at, times

    def on_step_end(self, trainer: Trainer) -> None:
        if trainer.state.step == self.at:
            for _ in range(self.times):
                signal.raise_signal(self.number)


def status(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "status.json").read_text())
    return record


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_finishes_the_step_saves_and_leaves(tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    trainer = make_trainer(epochs=3, callbacks=[Signal(number)], run_dir=run)
    state = trainer.fit()
    assert state.step == 4
    assert trainer.preemption == number.name
    assert status(run)["state"] == "preempted"
    assert status(run)["next"] == f"flambeau resume {run}"
    assert (run / "checkpoints" / "step-00000004").is_dir()
    assert number.name in (run / "log.txt").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_second_signal_that_is_not_ctrl_c_changes_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """Schedulers repeat themselves."""
    trainer = make_trainer(epochs=3, callbacks=[Signal(number, times=3)], run_dir=tmp_path / "run")
    trainer.fit()
    assert status(tmp_path / "run")["state"] == "preempted"


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    trainer = make_trainer(epochs=3, callbacks=[Signal(signal.SIGINT, times=2)], run_dir=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert status(tmp_path / "run")["state"] == "failed"
    assert "KeyboardInterrupt" in status(tmp_path / "run")["error"]


@pytest.mark.parametrize("number", SIGNALS)
def test_handlers_are_as_they_were_after_the_run(number: signal.Signals) -> None:
    def mine(number: int, frame: object) -> None: ...

    previous = signal.signal(number, mine)
    try:
        make_trainer(callbacks=[Signal(number, at=1)]).fit()
        assert signal.getsignal(number) is mine
        with pytest.raises(RuntimeError):
            make_trainer(callbacks=[Fail()]).fit()
        assert signal.getsignal(number) is mine
    finally:
        signal.signal(number, previous)


class Fail(Callback):
    def on_step_end(self, trainer: Trainer) -> None:
        raise RuntimeError("a test")


def test_outside_the_main_thread_it_trains_without_handlers() -> None:
    """Python lets only the main thread have them."""
    trainer = make_trainer(epochs=2)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors
    assert trainer.state.step == 6


def test_a_signal_without_a_run_folder_still_ends_the_run_in_order() -> None:
    """In a notebook the interrupt button ends `fit`, and the model is there as it is."""
    trainer = make_trainer(epochs=3, callbacks=[Signal(signal.SIGINT)])
    assert trainer.fit().step == 4
    assert trainer.preemption == "SIGINT"


class TestProcesses:
    """The exit status that a shell or a scheduler sees."""

    def leave(self, project: Project, *numbers: signal.Signals, workers: int = 0, group: bool = True) -> int:
        beacon = project.root / "beacon"
        process = project.start(
            *("train", "tiny", "--run-dir", "run", "trainer.epochs=2000", f"data.workers={workers}"),
            env={"BEACON": str(beacon), "PACE": "0.02" if len(numbers) == 1 else "1.0"},
        )
        deadline = time.monotonic() + 60
        while not beacon.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        for number in numbers:
            (os.killpg if group else os.kill)(process.pid, number)
            time.sleep(0.05)
        return process.wait(timeout=60)

    def test_ctrl_c_in_a_terminal_with_workers_is_status_75(self, project: Project) -> None:
        """A terminal sends it to every process of the run; workers that died of it would cost the save."""
        assert self.leave(project, signal.SIGINT, workers=2) == 75
        output = project.output.read_text()
        assert "stopped by SIGINT" in output
        assert "to go on: flambeau resume run" in output
        assert "Traceback" not in output

    @pytest.mark.slow
    def test_sigterm_is_status_75(self, project: Project) -> None:
        assert self.leave(project, signal.SIGTERM, group=False) == 75

    def test_ctrl_c_twice_is_status_130(self, project: Project) -> None:
        assert self.leave(project, signal.SIGINT, signal.SIGINT) == 130
        output = project.output.read_text()
        assert "interrupted" in output
        assert "Traceback" not in output
        assert status(project.root / "run")["state"] == "failed"
