"""Which run a process goes on with that was started anew, and how it gets the folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.projects import InProcess, Project, environment

from flambeau.errors import RunFolderError
from flambeau.launch.environment import AGENT, agent_of_this_process
from flambeau.launch.identity import find_begun_run
from flambeau.run_folder import RunFolder, lock
from flambeau.run_folder.status import BEAT_LIMIT


@pytest.fixture
def flambeau(project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    return InProcess(project, monkeypatch, capsys)


def begin(path: Path, agents: list[str]) -> Path:
    """A run that another process has begun."""
    RunFolder.create(path.parent, "lenet", path=path, agents=agents)
    rewrite(path, pid=1)
    return path


def rewrite(run: Path, **changes: object) -> None:
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | changes))


class TestWhichRun:
    def test_the_agent_of_a_process_is_the_same_for_all_that_it_starts(self) -> None:
        program = "from flambeau.launch.environment import agent_of_this_process as a; print(a())"

        def ask(**variables: str) -> str:
            return subprocess.run(
                [sys.executable, "-c", program], env=environment(variables), capture_output=True, text=True, check=True
            ).stdout.strip()

        assert ask() == "None"
        agent = ask(**{AGENT: "none"})
        assert agent == ask(**{AGENT: "none"}) and f":{os.getpid()}:" in agent

    def test_a_run_is_known_by_any_of_its_agents(self, tmp_path: Path) -> None:
        ours = begin(tmp_path / "b", ["h1:5:100", "h2:9:200"])
        others = begin(tmp_path / "a", ["h1:5:999"])
        folders = [ours, others, tmp_path / "absent"]
        for agents in (["h1:5:100"], ["h2:9:200", "h3:1:1"]):
            found = find_begun_run(folders, agents)
            assert found is not None and found.path == ours
        assert find_begun_run(folders, ["h1:6:100"]) is None
        assert find_begun_run(folders, []) is None

    def test_a_second_run_in_the_same_process_is_another_one(self, tmp_path: Path) -> None:
        RunFolder.create(tmp_path, "lenet", path=tmp_path / "run", agents=["h1:5:100"])
        assert find_begun_run([tmp_path / "run"], ["h1:5:100"]) is None

    def test_a_process_without_an_agent_begins_a_new_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(AGENT, raising=False)
        assert agent_of_this_process() is None


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Another process owns the folder, and does not let go."""
    program = (
        "import sys, time; from pathlib import Path; from flambeau.run_folder.lock import FolderLock;"
        f"lock = FolderLock(Path({str(run / '.lock')!r})); print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        process.kill()
        process.wait()


class TestTheLock:
    def test_of_a_lost_process_it_is_taken_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A machine that is out of reach cannot give up its lock."""
        monkeypatch.setattr(lock, "GRACE", 0.2)
        run = begin(tmp_path / "run", [])
        with held(run):
            with pytest.raises(RunFolderError, match="is in use"), RunFolder.open(run).lock():
                pass
            new = RunFolder.open(run).lock(take_over=True)
            with new, pytest.raises(RunFolderError, match="is in use"), RunFolder.open(run).lock():
                pass

    def test_who_has_lost_it_writes_no_status(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The machine comes back, its process fails at last, and another one has gone on with the run."""
        monkeypatch.setattr(lock, "GRACE", 0.2)
        first = RunFolder.create(tmp_path, "lenet", path=tmp_path / "run")
        second = RunFolder.open(first.path).lock(take_over=True)
        with pytest.raises(ValueError, match="at last"), first.lock():
            second.__enter__()
            raise ValueError("at last")
        second.__exit__(None, None, None)
        assert json.loads((first.path / "status.json").read_text())["state"] == "running"

    @pytest.mark.parametrize(("age", "free"), [(BEAT_LIMIT + 20, True), (BEAT_LIMIT - 60, False)])
    def test_a_process_elsewhere_is_lost_without_a_sign_of_life(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: float, free: bool
    ) -> None:
        monkeypatch.setattr(lock, "GRACE", 0.2)
        run = begin(tmp_path / "run", [])
        heartbeat = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() - age))
        rewrite(run, host="elsewhere", heartbeat=heartbeat)
        with held(run):
            if free:
                with RunFolder.open(run).lock():
                    pass
            else:
                with pytest.raises(RunFolderError, match="is in use"), RunFolder.open(run).lock():
                    pass


class TestTrainResume:
    """`flambeau train CONFIG --run-dir DIR --resume`: the same command again and again."""

    def test_it_begins_goes_on_and_ends(self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
        command = ("train", "tiny", "-d", "cpu", "--run-dir", "run", "--resume")
        monkeypatch.setenv("PREEMPT_AT", "10")
        assert "stopped by a test after step 10" in flambeau(*command, expect=75).out
        monkeypatch.delenv("PREEMPT_AT")
        assert "done: 4 epochs, 48 steps" in flambeau(*command).out
        assert "run is finished, at step 48: there is nothing left to do" in flambeau(*command).out
        straight = ("train", "tiny", "-d", "cpu", "--run-dir", "straight")
        flambeau(*straight)
        first, second = (flambeau.project.root / name / "metrics.jsonl" for name in ("run", "straight"))
        assert first.read_text() == second.read_text()

    def test_another_configuration_is_refused(self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
        command = ("train", "tiny", "-d", "cpu", "--run-dir", "run", "--resume")
        monkeypatch.setenv("PREEMPT_AT", "10")
        flambeau(*command, expect=75)
        answer = flambeau(*command, "optimizer.lr=0.5", expect=2)
        assert "optimizer.lr: with this the run is no longer the one that began" in answer.err
