"""status.json: what a run is doing, and whether it lives."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flambeau.errors import RunFolderError
from flambeau.run_folder import RunFolder, Status
from flambeau.run_folder import status as status_module
from flambeau.run_folder.status import StatusFile, read_status, state_now, this_host


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "lenet")


def ended_process() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_new_run_says_who_runs_it_and_since_when(folder: RunFolder) -> None:
    """From the first moment on, without any update."""
    status = read_status(folder.status_file)
    assert (status.state, status.config, status.pid, status.host) == (
        "running",
        "lenet",
        os.getpid(),
        this_host(),
    )
    assert status.started is not None and datetime.fromisoformat(status.started).utcoffset() == timedelta(0)
    assert state_now(status) == "running"


def test_a_status_is_created_once(folder: RunFolder) -> None:
    """Of two runs that found the same folder empty, the second is refused and changes nothing."""
    before = folder.status_file.read_bytes()
    with pytest.raises(FileExistsError):
        StatusFile(folder.status_file).create(Status(config="other"))
    assert folder.status_file.read_bytes() == before


def test_a_change_of_state_is_on_the_disk_at_once(folder: RunFolder) -> None:
    """With the end's time, and an error in one line."""
    folder.update_status(state="failed", step=7, error="ValueError: bad\n  shape")
    status = read_status(folder.status_file)
    assert (status.state, status.step, status.error) == ("failed", 7, "ValueError: bad shape")
    assert status.ended is not None


def test_a_resumed_run_keeps_its_start_and_best_score_and_drops_its_error(folder: RunFolder) -> None:
    """Its identity stays; how it ended before does not."""
    best = {"metric": "accuracy", "value": 0.97, "step": 40}
    folder.update_status(best=best)
    folder.update_status(state="failed", error="disk full", next="flambeau resume x")
    started = folder.status.started
    again = RunFolder.open(folder.path)
    again.update_status(state="running")
    status = read_status(folder.status_file)
    assert (status.best, status.started, status.error, status.ended) == (best, started, None, None)


def test_progress_is_written_now_and_then_and_known_at_once(folder: RunFolder) -> None:
    """A hundred steps a second do not become a hundred writes; leaving the lock writes the last."""
    with folder.lock():
        before = folder.status_file.stat().st_ino
        for step in range(100):
            folder.update_status(step=step)
        assert folder.status.step == 99
        assert folder.status_file.stat().st_ino == before
    assert read_status(folder.status_file).step == 99


def test_a_running_run_gives_signs_of_life_without_being_asked(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long validation or compilation does not look like death."""
    monkeypatch.setattr(status_module, "BEAT_INTERVAL", 0.01)
    with folder.lock():
        folder.update_status(state="running")
        first = read_status(folder.status_file).heartbeat
        deadline = time.monotonic() + 30
        while read_status(folder.status_file).heartbeat == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert read_status(folder.status_file).heartbeat != first
        folder.update_status(state="finished")
        last = read_status(folder.status_file)
    assert replace(read_status(folder.status_file), heartbeat=None) == replace(last, heartbeat=None)


def test_an_error_that_ends_the_process_is_in_the_status(folder: RunFolder) -> None:
    """Also one that nobody expected; a run that said how it ended keeps that."""
    folder.update_status(state="running")
    with pytest.raises(ZeroDivisionError), folder.lock():
        1 / 0  # noqa: B018
    status = read_status(folder.status_file)
    assert (status.state, status.error) == ("failed", "ZeroDivisionError: division by zero")
    folder.update_status(state="preempted", error=None)
    with pytest.raises(SystemExit), folder.lock():
        sys.exit(75)
    assert read_status(folder.status_file).state == "preempted"


def test_refusing_to_resume_leaves_the_status_of_the_run_alone(folder: RunFolder) -> None:
    """It was another process that ran it."""
    before = folder.status_file.read_bytes()
    with pytest.raises(RunFolderError), RunFolder.open(folder.path).lock():
        raise RunFolderError("finished already")
    assert folder.status_file.read_bytes() == before


def test_readers_and_writers_in_many_threads_never_see_half_a_status(folder: RunFolder) -> None:
    """The file is replaced in one instant."""
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            folder.update_status(state="running", next="x" * 5000)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        assert {read_status(folder.status_file).state for _ in range(300)} == {"running"}
    finally:
        stop.set()
        for writer in writers:
            writer.join()


def test_a_run_whose_process_is_gone_reads_as_dead(folder: RunFolder) -> None:
    """On this machine at once; a run that said how it ended stays as it said."""
    status = replace(folder.status, pid=ended_process())
    assert state_now(status) == "dead"
    assert state_now(replace(status, state="preempted")) == "preempted"


def test_a_killed_process_that_nobody_waited_for_reads_as_dead(folder: RunFolder) -> None:
    """A zombie keeps its number, yet trains no more."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        status = replace(folder.status, pid=process.pid)
        assert state_now(status) == "running"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert state_now(status) == "dead"
    finally:
        process.wait()


@pytest.mark.parametrize(("minutes", "state"), [(1, "running"), (10, "dead")])
def test_on_another_machine_the_heartbeat_decides(folder: RunFolder, minutes: int, state: str) -> None:
    """Its process numbers mean nothing here."""
    beat = (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat()
    status = replace(folder.status, host="elsewhere", pid=ended_process(), heartbeat=beat)
    assert state_now(status) == state


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"state": "running"'])
def test_a_damaged_status_reads_as_a_dead_run(folder: RunFolder, content: str) -> None:
    """What a power cut may leave neither hides the run nor stops a listing; the run can go on."""
    folder.status_file.write_text(content)
    again = RunFolder.open(folder.path)
    assert again.status.state == "dead" and again.status.error == "status.json is damaged"
    again.update_status(state="running", step=3)
    assert read_status(folder.status_file).step == 3


def test_keys_of_a_later_version_are_passed_over(folder: RunFolder) -> None:
    """An old Flambeau lists runs of a newer one."""
    values = json.loads(folder.status_file.read_text())
    folder.status_file.write_text(json.dumps(values | {"mood": "good", "step": 5}))
    assert read_status(folder.status_file).step == 5


def test_a_field_that_does_not_exist_is_refused(folder: RunFolder) -> None:
    """A typo in the engine does not vanish."""
    with pytest.raises(TypeError, match="no field stepp"):
        folder.update_status(stepp=1)


def test_a_score_that_is_not_a_number_leaves_the_file_readable_by_everyone(folder: RunFolder) -> None:
    """JSON has no NaN."""
    folder.update_status(state="running", best={"metric": "loss", "value": math.nan, "step": 1})
    assert json.loads(folder.status_file.read_text(), parse_constant=pytest.fail)["best"] is None


def test_progress_on_a_disk_that_refuses_it_does_not_end_the_training(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A status is not worth a run; a change of state says what is wrong."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    folder.update_status(state="running")
    monkeypatch.setattr(status_module, "WRITE_INTERVAL", 0.0)
    monkeypatch.setattr(status_module, "write_atomically", refuse)
    folder.update_status(step=1)
    assert folder.status.step == 1
    with pytest.raises(OSError, match="No space left"):
        folder.update_status(state="finished")


def test_a_status_has_defaults_for_all_but_nothing_is_required() -> None:
    """A status file of the fewest keys is readable."""
    assert Status() == Status(state="running")
