"""Jobs of a real Slurm: they finish, and whatever ends them before, they go on to the same bits."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.projects import CONFIG, Project, environment
from support.slurm import PATIENCE, Cluster
from support.states import assert_same_runs

pytestmark = pytest.mark.system

GATE = """

@register.callback("gate")
class Gate(Callback):
    \"\"\"Makes steps slow for as long as a file is there, and fails in one process if asked to.\"\"\"

    def on_step_end(self, trainer):
        if os.path.exists(os.environ.get("HOLD", "")):
            time.sleep(float(os.environ.get("HOLD_PACE", "0.3")))
        if trainer.state.step == 7 and os.environ.get("FAIL_RANK") == os.environ.get("RANK", "0"):
            raise RuntimeError("the test's own failure")
"""

EVERYTHING = ("data.jitter=0.1", "trainer.ema={decay: 0.9}", "trainer.clip_norm=1.0", "trainer.epochs=8")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """One for all jobs, so that a run is compared with one that nothing happened to."""
    config = CONFIG.replace("beacon: {}", "beacon: {}, gate: {}")
    return Project.write(tmp_path_factory.mktemp("jobs") / "project", parts=GATE, config=config)


@pytest.fixture(scope="module")
def straight(project: Project) -> Path:
    """The run without Slurm, with as many processes as the jobs have."""
    project.run("train", "tiny", *EVERYTHING, "-d", "cpu", "--processes", "2", "--run-dir", "straight")
    return project.root / "straight"


class Job:
    """A job, and the run that it trains."""

    def __init__(self, project: Project, slurm: Cluster, name: str) -> None:
        self.project, self.slurm, self.run = project, slurm, project.root / name
        self.hold, self.beacon = project.root / f"{name}.hold", project.root / f"{name}.beacon"
        self.number = ""

    def submit(self, *arguments: str, held: bool = False, env: dict[str, str] | None = None) -> None:
        """`flambeau submit tiny ARGUMENTS`; `held` jobs take their time until they are let go."""
        if held:
            self.hold.touch()
        variables = {"HOLD": str(self.hold), "BEACON": str(self.beacon), **self.slurm.env, **(env or {})}
        done = self.project.run("submit", "tiny", *arguments, "--run-dir", self.run, env=variables)
        self.number = done.stdout.split()[1]

    def submit_again(self) -> None:
        """What the script's last words say."""
        command = ["sbatch", "--parsable", str(self.run / "job/job.sh")]
        self.number = subprocess.run(
            command, env=environment(self.slurm.env), capture_output=True, text=True, check=True
        ).stdout.strip()

    def wait_for_step(self, step: int) -> None:
        """Wait until this many steps are done."""
        deadline = time.monotonic() + PATIENCE
        while not self.beacon.exists() or int(self.beacon.read_text() or 0) < step:
            state = self.slurm.job(self.number)["JobState"]
            assert state in ("PENDING", "CONFIGURING", "RUNNING"), f"{state}\n{self.log}"
            assert time.monotonic() < deadline, self.log
            time.sleep(0.1)

    def wait_for_restart(self, number: int) -> None:
        """Wait until the job was requeued, and begins anew at once."""
        deadline = time.monotonic() + PATIENCE
        while int((job := self.slurm.job(self.number))["Restarts"]) < number:
            assert time.monotonic() < deadline, f"{job['JobState']}\n{self.log}"
            time.sleep(0.1)
        self.slurm.wait(self.number, "RUNNING", "COMPLETED", log=self.log_file)

    def let_go(self) -> None:
        """From now on it trains as fast as it can."""
        self.hold.unlink()

    def end(self, state: str = "COMPLETED") -> dict[str, str]:
        """Wait for the job's end."""
        return self.slurm.wait(self.number, state, log=self.log_file)

    @property
    def log(self) -> str:
        """What the job has said."""
        return self.log_file.read_text() if self.log_file.exists() else "no log"

    @property
    def log_file(self) -> Path:
        return self.run / "job/log.txt"

    @property
    def status(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.run / "status.json").read_text())
        return record


@pytest.fixture
def job(request: pytest.FixtureRequest, project: Project, slurm: Cluster) -> Iterator[Job]:
    """A job whose run lies in the folder `<name of the test>`."""
    made = Job(project, slurm, request.node.name)
    yield made
    made.hold.unlink(missing_ok=True)


TWO_NODES = ("--nodes", "2")


def test_a_job_of_two_nodes_trains_as_two_processes_do(job: Job, straight: Path) -> None:
    """The same bits as without Slurm; status.json and the log name the job."""
    job.submit(*EVERYTHING, *TWO_NODES)
    assert job.end()["ExitCode"] == "0:0"
    assert_same_runs(straight, job.run)
    assert job.status["job"] == job.number
    assert f"job {job.number}: start 1 on n[1-2]" in job.log
    assert f"job {job.number}: finished" in job.log


def test_several_processes_on_each_node_train_as_well(job: Job, project: Project) -> None:
    """Two nodes with two processes: as four on one machine."""
    job.submit(*EVERYTHING, *TWO_NODES, "--processes-per-node", "2")
    project.run("train", "tiny", *EVERYTHING, "-d", "cpu", "--processes", "4", "--run-dir", "four")
    job.end()
    assert_same_runs(project.root / "four", job.run)


def test_the_signal_before_the_limit_saves_requeues_and_goes_on(job: Job, straight: Path) -> None:
    """Sent by hand to the batch script alone, as Slurm sends it; twice. The last bits are those of the whole run."""
    job.submit(*EVERYTHING, *TWO_NODES, held=True)
    for restart, step in ((1, 5), (2, 12)):
        job.wait_for_step(step)
        job.slurm.call("scancel", "--batch", "--signal=USR1", job.number)
        job.wait_for_restart(restart)
    assert job.log.count("stopped before its end; requeued to go on") == 2
    job.let_go()
    assert job.end()["Restarts"] == "2"
    assert_same_runs(straight, job.run)


def test_slurm_itself_sends_the_signal_before_the_limit(job: Job, straight: Path) -> None:
    """A job of two minutes whose training would take longer: a limit that is really reached."""
    job.submit(*EVERYTHING, *TWO_NODES, "--time", "2", "--signal-seconds", "60", held=True, env={"HOLD_PACE": "1.5"})
    job.wait_for_restart(1)
    assert "requeued" in job.log
    assert 0 < job.status["step"] < 96
    job.let_go()
    job.end()
    assert_same_runs(straight, job.run)


def test_a_preempted_job_is_requeued_and_goes_on(job: Job, straight: Path) -> None:
    """Slurm sends SIGTERM; a job that leaves with a status within the grace time is not requeued by Slurm itself."""
    job.submit(*EVERYTHING, *TWO_NODES, "--partition", "low", "--sbatch-arg=--exclusive", held=True)
    job.wait_for_step(5)
    urgent = job.slurm.call(
        "sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true"
    ).strip()
    job.slurm.wait(urgent, "COMPLETED")
    job.wait_for_restart(1)
    job.let_go()
    job.end()
    assert_same_runs(straight, job.run)


def test_a_cancelled_job_saves_and_is_not_requeued(job: Job, straight: Path) -> None:
    """`scontrol requeue` would bring it back to life. `sbatch` with its script goes on later."""
    job.submit(*EVERYTHING, *TWO_NODES, held=True)
    job.wait_for_step(5)
    job.slurm.call("scancel", job.number)
    assert job.end("CANCELLED")["Restarts"] == "0"
    deadline = time.monotonic() + 20
    while job.status["state"] == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert job.status["state"] == "preempted"
    assert "; requeued" not in job.log
    job.let_go()
    job.submit_again()
    job.end()
    assert_same_runs(straight, job.run)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_training_that_fails_ends_the_job_with_its_status(job: Job, rank: int) -> None:
    """No requeue: it would fail again. The traceback is in the log."""
    job.submit(*EVERYTHING, *TWO_NODES, env={"FAIL_RANK": str(rank)})
    ended = job.end("FAILED")
    assert (ended["ExitCode"], ended["Restarts"]) == ("1:0", "0")
    assert "RuntimeError: the test's own failure" in job.log
    assert f"job {job.number}: failed with status 1" in job.log
    assert job.status["state"] == "failed"


def test_a_lost_node_does_not_end_the_run(job: Job, straight: Path) -> None:
    """The other node fails long before Slurm notices: that is no failure of the training."""
    job.submit(*EVERYTHING, *TWO_NODES, held=True)
    job.wait_for_step(5)
    job.slurm.kill_node("n2")
    job.let_go()
    deadline = time.monotonic() + PATIENCE
    while job.slurm.job(job.number)["Restarts"] == "0" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert job.slurm.job(job.number)["Restarts"] == "1", job.log
    job.slurm.start_node("n2")
    job.end()
    assert_same_runs(straight, job.run)


def test_after_its_last_requeue_a_job_says_how_to_go_on(job: Job, straight: Path) -> None:
    """One that never gets further than its start does not come back for ever."""
    job.submit(*EVERYTHING, *TWO_NODES, "--max-requeues", "1", held=True)
    for restart, step in ((1, 5), (2, 8)):
        job.wait_for_step(step)
        job.slurm.call("scancel", "--batch", "--signal=USR1", job.number)
        if restart == 1:
            job.wait_for_restart(1)
    assert job.end("FAILED")["ExitCode"] == "75:0"
    assert f"after 1 requeues; to go on: sbatch {job.run}/job/job.sh" in job.log
    job.let_go()
    job.submit_again()
    job.end()
    assert_same_runs(straight, job.run)
    job.submit_again()  # finished: nothing is left to do
    assert job.end()["ExitCode"] == "0:0"


def test_the_tasks_of_an_array_are_runs_of_their_own(job: Job, project: Project) -> None:
    """Requeueing one of them leaves the others alone: an array's number stands for all of them."""
    job.submit(*EVERYTHING, "seed=${env:SLURM_ARRAY_TASK_ID}", "--array", "4-5", held=True)
    last = f"{job.number}_5"
    deadline = time.monotonic() + 60
    while not all((job.run / f"{task}/metrics.jsonl").exists() for task in (4, 5)):
        assert time.monotonic() < deadline, [file.read_text() for file in job.run.glob("job/log-*")]
        time.sleep(0.1)
    time.sleep(1)
    for task in (4, 5):
        job.slurm.call("scancel", "--batch", "--signal=USR1", f"{job.number}_{task}")
        deadline = time.monotonic() + 60
        while job.slurm.job(f"{job.number}_{task}")["Restarts"] == "0":
            assert time.monotonic() < deadline, (job.run / f"job/log-{task}.txt").read_text()
            time.sleep(0.1)
        if task == 4:
            assert job.slurm.job(last)["Restarts"] == "0"
            assert job.slurm.job(last)["JobState"] == "RUNNING"
    job.let_go()
    for task in (4, 5):
        job.slurm.wait(f"{job.number}_{task}", "COMPLETED")
        whole = project.root / f"seed-{task}"
        project.run("train", "tiny", *EVERYTHING, f"seed={task}", "-d", "cpu", "--run-dir", whole)
        assert_same_runs(whole, job.run / str(task))
    assert json.loads((job.run / "5/status.json").read_text())["job"] == last


def test_hostile_names_of_folders_are_names(slurm: Cluster, tmp_path: Path) -> None:
    """The working directory and the run's; the log is where it was said to be."""
    root = tmp_path / 'we\'ird $(touch pwned) `touch pwned` "q" %j;#&'
    job = Job(Project.write(root), slurm, "run $(touch pwned) %a 'x' \"y\" #")
    job.submit("trainer.epochs=1")
    job.end()
    assert job.status["state"] == "finished"
    assert f"job {job.number}: finished" in job.log
    assert not [path for path in tmp_path.rglob("*") if path.name == "pwned"]


def test_a_file_for_the_environment_is_read_first(job: Job, tmp_path: Path) -> None:
    """Its python trains; here a wrapper that leaves a trace."""
    wrapper = tmp_path / "bin" / "python"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\necho "$MODULE" > {tmp_path}/trace\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    setup = tmp_path / "environment file.sh"
    setup.write_text(f"export MODULE=loaded PATH={wrapper.parent}:$PATH\n")
    job.submit("trainer.epochs=1", "--env-setup", str(setup))
    job.end()
    assert (tmp_path / "trace").read_text() == "loaded\n"


def test_accelerators_and_memory_are_asked_for(job: Job) -> None:
    """As Slurm has it in its books."""
    job.submit(*TWO_NODES, "--gpus-per-node", "2", "--cpus-per-task", "2", "--mem", "2G", "--sbatch-arg=--hold")
    fields = job.slurm.job(job.number)
    assert fields["TresPerNode"] == "gres:gpu:2"
    assert fields["MinMemoryNode"] == "2G"
    assert fields["CPUs/Task"] == "4"
    assert fields["Requeue"] == "1"


def test_processes_that_srun_starts_are_the_processes_of_a_run(
    project: Project, slurm: Cluster, straight: Path
) -> None:
    """`srun flambeau train` in an allocation of one's own, without submit and without torchrun."""
    run = project.root / "by-srun"
    command = ["srun", "--nodes=2", "--ntasks=2", sys.executable, "-m", "flambeau", "train", "tiny", *EVERYTHING]
    done = subprocess.run(
        [*command, "-d", "cpu", "--run-dir", str(run)],
        cwd=project.root,
        env=environment(slurm.env),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_runs(straight, run)
