"""`flambeau train -d cpu --processes 2`: real processes, as a user starts them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.projects import Project, environment

from flambeau.run_folder.status import is_alive

pytestmark = pytest.mark.slow

TWO = ("-d", "cpu", "--processes", "2")


def status(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "status.json").read_text())
    return record


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def workers(parent: int) -> list[int]:
    """The processes that `parent` has started and that are still there."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, rest = stat.read_text().split(" ", 1)
        except OSError:
            continue
        if int(rest.rpartition(")")[2].split()[1]) == parent and is_alive(int(number)):
            found.append(int(number))
    return found


def wait_for(what: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Begun:
    """A run of two processes that goes on until it is told to stop."""

    def __init__(self, project: Project, *options: str, pace: str = "0.02") -> None:
        beacon = project.root / "beacon"
        self.project, self.run = project, project.root / "run"
        self.process = project.start(
            *("train", "tiny", "--run-dir", "run", "trainer.epochs=2000", *TWO, *options),
            env={"BEACON": str(beacon), "PACE": pace},
        )
        wait_for(lambda: beacon.exists() or self.process.poll() is not None)
        self.workers = workers(self.process.pid)
        assert len(self.workers) == 2, project.output.read_text()

    def end(self) -> int:
        """The exit status; nothing is left behind."""
        left = self.process.wait(timeout=90)
        assert not [pid for pid in self.workers if is_alive(pid)]
        return left

    @property
    def output(self) -> str:
        return self.project.output.read_text()


def test_two_processes_train_as_one_does(project: Project) -> None:
    """Rank 0 alone is on the terminal, each rank has its file, and the run says how many there were."""
    done = project.run("train", "tiny", *TWO, "--run-dir", "run")
    run = project.root / "run"
    assert "fp32 on cpu, 2 processes" in done.stdout
    assert done.stdout.count("done: 4 epochs") == 1
    assert "hello of rank 0" in done.stdout and "native hello of rank 0" in done.stderr
    assert "rank 1" not in done.stdout + done.stderr
    assert status(run)["state"] == "finished"
    of_main, of_other = ((run / "logs" / f"rank-{rank}.txt").read_text() for rank in range(2))
    assert "hello of rank 0\n" in of_main and "done: 4 epochs" in of_main
    assert "hello of rank 1\nnative hello of rank 1\n" in of_other
    assert of_other.startswith("--- process ") and "rank 1 of 2" in of_other.splitlines()[0]
    assert (run / "command.txt").read_text().endswith("flambeau train tiny -d cpu --processes 2 --run-dir run\n")


def test_rank_0_has_the_terminal_to_itself(project: Project) -> None:
    """The progress bar is drawn as by one process, and its file has the lines without the bar."""
    terminal, other = pty.openpty()
    command = [sys.executable, "-m", "flambeau", "train", "tiny", *TWO, "--run-dir", "run"]
    process = subprocess.Popen(
        command, cwd=project.root, env=environment({"TERM": "xterm"}), stdin=other, stdout=other, stderr=other
    )
    os.close(other)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal's other end is closed
        while chunk := os.read(terminal, 65536):
            shown += chunk
    os.close(terminal)
    assert process.wait(timeout=60) == 0
    assert b"/48 steps" in shown and re.search(rb"\x1b\[2Kepoch   1  step", shown)
    assert b"hello of rank 0" in shown and b"rank 1" not in shown
    kept = (project.root / "run/logs/rank-0.txt").read_text()
    assert "done: 4 epochs" in kept and "/48 steps" not in kept and "\x1b" not in kept


def test_evaluate_gives_one_answer_and_resume_goes_on(project: Project) -> None:
    project.run("train", "tiny", "--run-dir", "run", "-d", "cpu", "trainer.epochs=2")
    alone = json.loads(project.run("evaluate", "run", "-d", "cpu", "--json").stdout)
    together = project.run("evaluate", "run", *TWO, "--json")
    scores = json.loads(together.stdout)["scores"]
    assert scores.keys() == alone["scores"].keys() and scores["accuracy"] == alone["scores"]["accuracy"]
    assert json.loads(together.stdout) | {"scores": None} == alone | {"scores": None}
    done = project.run("resume", "run", *TWO, "trainer.epochs=3", "--force")
    assert "changed: trainer.epochs: 2 -> 3" in done.stdout
    assert "2 processes" in done.stdout and "done: 3 epochs" in done.stdout


class TestFailures:
    def fail(self, project: Project, what: str, *options: str, expect: int = 1) -> str:
        done = project.run(
            *("train", "tiny", *TWO, "--run-dir", "run", f"callbacks.trouble.what={what}", *options), expect=expect
        )
        return done.stderr

    def test_the_last_words_are_the_traceback_of_the_rank_that_raised(self, project: Project) -> None:
        shown = self.fail(project, "raise")
        lines = shown.rstrip().split("\n")
        head = next(number for number, line in enumerate(lines) if line.startswith("rank 1 failed"))
        assert lines[head] == "rank 1 failed (its output: run/logs/rank-1.txt):"
        assert lines[head + 1] == "Traceback (most recent call last):" and lines[-1] == "ValueError: boom"
        assert shown.count("Traceback") == 1 and "closed by peer" not in shown
        assert status(project.root / "run")["state"] == "failed"
        assert status(project.root / "run")["error"] == "rank 1: ValueError: boom"
        assert "ValueError: boom" in (project.root / "run/logs/rank-1.txt").read_text()

    def test_so_it_is_for_rank_0(self, project: Project) -> None:
        shown = self.fail(project, "raise", "callbacks.trouble.rank=0")
        assert shown.count("Traceback") == 1 and "rank 0 failed:\nTraceback" in shown
        assert shown.rstrip().endswith("ValueError: boom")
        assert status(project.root / "run")["error"] == "rank 0: ValueError: boom"
        assert "ValueError: boom" in (project.root / "run/logs/rank-0.txt").read_text()

    def test_a_killed_rank_is_named(self, project: Project) -> None:
        shown = self.fail(project, "kill")
        assert "rank 1 failed: ended by SIGKILL (out of memory?)" in shown.rstrip().split("\n")[-1]
        assert status(project.root / "run")["error"] == "rank 1: ended by SIGKILL (out of memory?)"

    def test_a_rank_that_just_leaves_is_named(self, project: Project) -> None:
        """Its status is 0, and the others would wait for it."""
        assert "rank 1 failed: it left in the middle, with status 0" in self.fail(project, "exit")

    def test_a_message_for_people_has_no_traceback(self, project: Project) -> None:
        shown = self.fail(project, "wrong", expect=2)
        assert shown.endswith("error: the data is not what it should be\n  fetch it again\n") or (
            "rank 1 failed" in shown and "Traceback" not in shown
        )
        assert "Traceback" not in shown

    def test_what_is_wrong_for_all_is_said_once(self, project: Project) -> None:
        shown = self.fail(project, "nothing", "model={name: picky}", expect=2)
        assert shown.count("no such weights") == 1
        assert "Traceback" not in shown and not (project.root / "run").exists()

    def test_before_there_is_a_folder_the_output_of_the_failed_rank_is_shown(self, project: Project) -> None:
        shown = self.fail(project, "nothing", "model={name: picky, alike: false}")
        assert "thinking about it" in shown
        assert "rank 1 failed" in shown and shown.rstrip().endswith("RuntimeError: only here")
        assert not (project.root / "run").exists()

    def test_a_folder_that_is_taken_ends_all_with_one_message(self, project: Project) -> None:
        (project.root / "run").mkdir()
        (project.root / "run" / "precious").write_text("")
        shown = self.fail(project, "nothing", expect=2)
        assert shown == "error: run is not empty\n  give --run-dir a folder that is new or empty\n"


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
    def test_a_signal_to_the_launcher_saves_once_and_leaves(self, project: Project, number: signal.Signals) -> None:
        begun = Begun(project)
        os.kill(begun.process.pid, number)
        assert begun.end() == 75
        assert f"stopped by {number.name}" in begun.output and "to go on: flambeau resume run" in begun.output
        assert "Traceback" not in begun.output
        assert status(begun.run)["state"] == "preempted"
        assert (begun.run / "checkpoints" / f"step-{status(begun.run)['step']:08d}").is_dir()

    def test_a_signal_to_one_worker_does_so_too(self, project: Project) -> None:
        begun = Begun(project)
        os.kill(max(begun.workers), signal.SIGTERM)
        assert begun.end() == 75
        assert status(begun.run)["state"] == "preempted"

    def test_a_second_ctrl_c_ends_at_once(self, project: Project) -> None:
        begun = Begun(project, pace="5")
        os.kill(begun.process.pid, signal.SIGINT)
        time.sleep(0.5)
        os.kill(begun.process.pid, signal.SIGINT)
        assert begun.end() == 130
        assert "interrupted" in begun.output and "Traceback" not in begun.output
        assert status(begun.run)["state"] == "failed"

    def test_a_signal_before_the_training_begins_ends_all(self, project: Project) -> None:
        process = project.start("train", "tiny", *TWO, "--run-dir", "run")
        wait_for(lambda: len(workers(process.pid)) == 2)
        started = workers(process.pid)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
        assert "stopped by SIGTERM before the training began" in project.output.read_text()
        assert not [pid for pid in started if is_alive(pid)]

    def test_workers_end_with_their_launcher(self, project: Project) -> None:
        begun = Begun(project)
        begun.process.kill()
        begun.process.wait()
        wait_for(lambda: not [pid for pid in begun.workers if is_alive(pid)], 10)


class TestRestarts:
    def test_a_killed_worker_is_started_again_in_the_same_run(self, project: Project) -> None:
        done = project.run(
            *("train", "tiny", *TWO, "--max-restarts", "1", "checkpoint.every_steps=3"),
            *("callbacks.trouble.what=kill once", "callbacks.trouble.at=8"),
        )
        assert "rank 1 failed: ended by SIGKILL (out of memory?); starting again" in done.stderr
        (run,) = (project.root / "runs" / "tiny").glob("*")
        assert status(run)["state"] == "finished"
        straight = project.run("train", "tiny", *TWO, "--run-dir", "straight", "checkpoint.every_steps=3")
        assert straight.returncode == 0
        assert metrics(run) == metrics(project.root / "straight")

    def test_restarts_are_counted(self, project: Project) -> None:
        done = project.run(
            *("train", "tiny", *TWO, "--run-dir", "run", "--max-restarts", "1", "callbacks.trouble.what=raise"),
            expect=1,
        )
        assert done.stderr.count("starting again from the newest checkpoint (1 of 1)") == 1
        assert done.stderr.rstrip().endswith("ValueError: boom")

    def test_wrong_usage_is_not_tried_again(self, project: Project) -> None:
        done = project.run(
            *("train", "tiny", *TWO, "--max-restarts", "5", "--run-dir", "run", "callbacks.trouble.what=wrong"),
            expect=2,
        )
        assert "starting again" not in done.stderr


class TestTorchrun:
    def start(self, project: Project, *arguments: str, restarts: str = "0") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
                *("--max-restarts", restarts, "-m", "flambeau", *arguments),
            ],
            cwd=project.root,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )

    def test_it_works_as_the_launcher(self, project: Project) -> None:
        done = self.start(project, "train", "tiny", "-d", "cpu", "--run-dir", "run")
        assert done.returncode == 0, done.stderr
        assert "2 processes" in done.stdout and done.stdout.count("done: 4 epochs") == 1
        assert "hello of rank 1" in (project.root / "run/logs/rank-1.txt").read_text()
        assert "hello of rank 1" not in done.stdout

    def test_a_failure_is_headed_with_its_rank(self, project: Project) -> None:
        done = self.start(project, "train", "tiny", "-d", "cpu", "--run-dir", "run", "callbacks.trouble.what=raise")
        assert done.returncode == 1
        assert "rank 1 failed:\nTraceback" in done.stderr
        root_cause = done.stderr.split("Root Cause")[1]
        assert "rank      : 1" in root_cause and "ValueError: boom" in root_cause

    def test_a_restarted_worker_goes_on_in_the_same_run(self, project: Project) -> None:
        trouble = ("callbacks.trouble.what=kill once", "callbacks.trouble.at=8", "checkpoint.every_steps=3")
        done = self.start(project, "train", "tiny", "-d", "cpu", *trouble, restarts="2")
        assert done.returncode == 0, done.stderr
        (run,) = (project.root / "runs" / "tiny").glob("*")
        assert status(run)["state"] == "finished"
        assert (run / "command.txt").read_text().count("flambeau train") == 2

    def test_another_number_of_processes_than_devices_is_refused(self, project: Project) -> None:
        done = self.start(project, "train", "tiny", "-d", "cpu", "--processes", "3")
        assert done.returncode == 1
        said = "error: --processes 3 is for 3 processes on a machine, and the launcher started 2"
        assert done.stderr.split("=====")[0].count(said) == 1


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Machines:
    """Launchers that stand for machines: they meet on loopback, as machines do on their network."""

    def __init__(self, project: Project, *options: str) -> None:
        self.project, self.options = project, (*options, "--master", f"127.0.0.1:{free_port()}")
        self.processes: dict[int, subprocess.Popen[str]] = {}

    def start(self, number: int, *options: str) -> None:
        with self.output(number).open("a") as output:
            self.processes[number] = subprocess.Popen(
                [
                    *(sys.executable, "-m", "flambeau", "train", "tiny", "-d", "cpu"),
                    *("--node-rank", str(number), *self.options, *options),
                ],
                cwd=self.project.root,
                env=environment({"PACE": "0.05"}),
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def output(self, number: int) -> Path:
        return self.project.root / f"machine-{number}.txt"

    def ends(self) -> dict[int, int]:
        return {number: process.wait(timeout=120) for number, process in self.processes.items()}

    def status(self) -> dict[str, Any]:
        """Of the one run that there is; empty before it begins."""
        found = list((self.project.root / "runs" / "tiny").glob("*/status.json"))
        assert len(found) <= 1
        try:
            return json.loads(found[0].read_text()) if found else {}
        except ValueError:  # it is being made
            return {}


class TestMachines:
    def test_two_machines_with_different_numbers_of_processes(self, project: Project) -> None:
        machines = Machines(project, "--nodes", "2", "--run-dir", "run")
        machines.start(1)
        machines.start(0, "--processes", "2")
        assert machines.ends() == {0: 0, 1: 0}
        assert "3 processes" in machines.output(0).read_text()
        assert machines.output(1).read_text().endswith("rank 2; the run is shown where rank 0 is\n")
        assert sorted(path.name for path in (project.root / "run/logs").iterdir()) == [
            f"rank-{rank}.txt" for rank in range(3)
        ]

    def test_a_failure_on_one_is_told_on_both(self, project: Project) -> None:
        trouble = ("callbacks.trouble.what=raise", "callbacks.trouble.rank=1")
        machines = Machines(project, "--nodes", "2", "--run-dir", "run", *trouble)
        machines.start(0)
        machines.start(1)
        assert machines.ends() == {0: 1, 1: 1}
        for number in range(2):
            said = machines.output(number).read_text()
            assert "rank 1" in said and said.rstrip().endswith("ValueError: boom")

    def test_a_signal_on_one_stops_both(self, project: Project) -> None:
        machines = Machines(project, "--nodes", "2", "trainer.epochs=2000")
        machines.start(0)
        machines.start(1)
        wait_for(lambda: machines.status().get("step", 0) > 3)
        machines.processes[1].send_signal(signal.SIGUSR1)
        assert machines.ends() == {0: 75, 1: 75}
        assert machines.status()["state"] == "preempted"

    def test_machines_that_come_and_go(self, project: Project) -> None:
        """One is lost, the run goes on without it; it comes back, and the run takes it in, without a step repeated."""
        machines = Machines(project, "--nodes", "1:2", "trainer.epochs=2000", "checkpoint.every_steps=5")
        machines.start(0)
        machines.start(1)
        wait_for(lambda: machines.status().get("step", 0) > 10 and len(machines.status()["agents"]) == 2)
        machines.processes[1].kill()
        wait_for(lambda: len(machines.status()["agents"]) == 1)
        reached = machines.status()["step"]
        wait_for(lambda: machines.status()["step"] > reached)
        machines.start(1)
        wait_for(lambda: len(machines.status()["agents"]) == 2)
        reached = machines.status()["step"]
        wait_for(lambda: machines.status()["step"] > reached + 5)
        machines.processes[0].send_signal(signal.SIGTERM)
        assert machines.ends() == {0: 75, 1: 75}
        (run,) = (project.root / "runs" / "tiny").glob("*")
        steps = [record["step"] for record in metrics(run) if "train/loss" in record]
        assert steps == [*range(5, 5 * len(steps) + 1, 5)]
