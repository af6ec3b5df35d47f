"""Finding runs."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flambeau.run_folder import RunFolder, find_runs


def begun(folder: RunFolder, *, minutes_ago: float) -> RunFolder:
    """Move the start of a run into the past."""
    started = datetime.now(UTC) - timedelta(minutes=minutes_ago)
    folder.update_status(state="finished", started=started.isoformat())
    return folder


def test_runs_are_found_newest_first_wherever_they_lie_below(tmp_path: Path) -> None:
    """Under their configuration, in a given folder, and one level deeper."""
    old = begun(RunFolder.create(tmp_path, "lenet"), minutes_ago=60)
    new = begun(RunFolder.create(tmp_path, "resnet"), minutes_ago=1)
    named = begun(RunFolder.create(tmp_path, "mlp", path=tmp_path / "named"), minutes_ago=30)
    deep = begun(RunFolder.create(tmp_path / "thesis", "lenet"), minutes_ago=90)
    runs = find_runs(tmp_path)
    assert [run.path for run in runs] == [folder.path for folder in (new, named, old, deep)]
    assert [run.config for run in runs] == ["resnet", "mlp", "lenet", "lenet"]
    assert [round(run.age / 60) for run in runs] == [1, 30, 60, 90]


def test_a_run_folder_itself_is_one_run(tmp_path: Path) -> None:
    """And what lies inside of it is not searched."""
    folder = RunFolder.create(tmp_path, "lenet")
    RunFolder.create(folder.path, "inner", path=folder.path / "inner")
    assert [run.path for run in find_runs(folder.path)] == [folder.path]


def test_a_summary_holds_what_the_status_says(tmp_path: Path) -> None:
    """Step, length, best score, error and how to go on."""
    folder = RunFolder.create(tmp_path, "lenet")
    best = {"metric": "accuracy", "value": 0.5, "step": 2}
    folder.update_status(
        state="failed", step=3, total_steps=9, epoch=1, best=best, error="boom", next="flambeau resume x"
    )
    (run,) = find_runs(tmp_path)
    assert (run.state, run.step, run.total_steps, run.epoch) == ("failed", 3, 9, 1)
    assert (run.best, run.error, run.next) == (best, "boom", "flambeau resume x")


def test_a_run_that_lost_its_process_reads_as_dead(tmp_path: Path) -> None:
    """It says running; nothing runs."""
    folder = RunFolder.create(tmp_path, "lenet")
    values = json.loads(folder.status_file.read_text())
    folder.status_file.write_text(json.dumps(values | {"pid": 2**22 + 1}))
    assert [run.state for run in find_runs(tmp_path)] == ["dead"]


@pytest.mark.parametrize("content", ["", "[]", '{"started": "yesterday"}', '{"best": 3}', '{"step": "many"}'])
def test_one_damaged_run_does_not_hide_the_others(tmp_path: Path, content: str) -> None:
    """It is listed as dead, under the name of its folder."""
    good = begun(RunFolder.create(tmp_path, "lenet"), minutes_ago=5)
    bad = tmp_path / "resnet" / "broken"
    bad.mkdir(parents=True)
    (bad / "status.json").write_text(content)
    states = {run.path: (run.state, run.config) for run in find_runs(tmp_path)}
    assert states == {good.path: ("finished", "lenet"), bad: ("dead", "resnet")}


def test_no_folder_no_files_and_loops_of_links_hold_no_runs(tmp_path: Path) -> None:
    """A listing ends."""
    assert find_runs(tmp_path / "absent") == []
    (tmp_path / "file").write_text("")
    assert find_runs(tmp_path / "file") == []
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert find_runs(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_passed_over(tmp_path: Path) -> None:
    """Someone else's runs are not ours to list."""
    RunFolder.create(tmp_path, "lenet")
    (tmp_path / "private").mkdir(mode=0)
    assert len(find_runs(tmp_path)) == 1
