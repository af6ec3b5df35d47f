"""`flambeau runs`."""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flambeau.cli import runs
from flambeau.errors import EXIT_DONE, RunFolderError
from flambeau.run_folder import RunFolder


def call(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    runs.add_arguments(parser)
    return runs.run(parser.parse_args(arguments))


def add(runs_dir: Path, config: str, *, minutes_ago: float, state: str, **changes: object) -> RunFolder:
    folder = RunFolder.create(runs_dir, config)
    started = (datetime.now(UTC) - timedelta(minutes=minutes_ago)).isoformat()
    folder.update_status(state=state, started=started, **changes)
    return folder


def best(value: float, metric: str = "accuracy") -> dict[str, object]:
    return {"metric": metric, "value": value, "step": 1}


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs: configurations a, b, c from oldest to newest; b is the best, a the furthest."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs"
    add(folder, "a", minutes_ago=300, state="finished", step=900, total_steps=900, best=best(0.7))
    add(folder, "b", minutes_ago=50, state="failed", step=10, best=best(0.9))
    add(folder, "c", minutes_ago=0, state="preempted", step=20)
    return folder


def configs(output: str) -> list[str]:
    return [item["config"] for item in json.loads(output)]


def test_runs_are_plain_aligned_lines_newest_first(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """State, configuration, step, best score, age and path, for people and for awk."""
    assert call() == EXIT_DONE
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["STATE", "CONFIG", "STEP", "BEST", "AGE", "PATH"]
    columns = [head.index(name) for name in head.split()]
    for line in lines:
        assert all(line[column - 1] == " " and line[column] != " " for column in columns[1:])
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    assert [row[:5] for row in cells] == [
        ["preempted", "c", "20", "-", "0 s"],
        ["failed", "b", "10", "accuracy 0.9", "50 min"],
        ["finished", "a", "900/900", "accuracy 0.7", "5 h"],
    ]
    assert all(Path(row[5]).parent.parent == Path("runs") and Path(row[5]).is_dir() for row in cells)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ["c", "b", "a"]),
        (["--reverse"], ["a", "b", "c"]),
        (["--sort", "score"], ["b", "a", "c"]),
        (["--sort", "step"], ["a", "c", "b"]),
        (["--sort", "config"], ["a", "b", "c"]),
        (["--sort", "state"], ["a", "b", "c"]),
        (["--state", "failed", "--state", "preempted"], ["c", "b"]),
        (["--config", "a"], ["a"]),
        (["--config", "a", "--state", "failed"], []),
        (["--limit", "1"], ["c"]),
        (["--limit", "0"], []),
    ],
)
def test_runs_are_sorted_filtered_and_cut_as_asked(
    runs_dir: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: list[str]
) -> None:
    """In every form of output alike; here in JSON."""
    assert call(str(runs_dir), "--json", *options) == EXIT_DONE
    assert configs(capsys.readouterr().out) == expected


def test_json_holds_every_field_of_a_run(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One list of objects."""
    call(str(runs_dir), "--json", "--config", "a")
    (item,) = json.loads(capsys.readouterr().out)
    assert item.keys() == {
        *("path", "config", "state", "step", "total_steps", "epoch", "best", "started", "age_seconds"),
        *("debug", "error", "next"),
    }
    assert (item["best"], item["age_seconds"] // 60) == (best(0.7), 300)


def test_no_runs_are_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing trained yet is no error; a folder that does not exist is, if it was asked for by name."""
    monkeypatch.chdir(tmp_path)
    assert call() == EXIT_DONE
    assert capsys.readouterr().out == "no runs in runs\n"
    assert call("--json") == EXIT_DONE
    assert json.loads(capsys.readouterr().out) == []
    with pytest.raises(RunFolderError, match="absent is not a folder"):
        call("absent")


def test_a_filter_that_no_run_passes_says_so(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There are runs, but none like that."""
    call("--config", "z")
    assert capsys.readouterr().out == "no runs match\n"


def test_a_terminal_gets_the_newest_and_is_told_of_the_rest(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand lines help nobody; paths stay whole on a narrow screen; no markup is read from names."""
    from rich.console import Console

    add(runs_dir, "[red]x[/red]", minutes_ago=-1, state="failed")
    screen = io.StringIO()
    monkeypatch.setattr(runs, "is_terminal", lambda: True)
    monkeypatch.setattr(runs, "console", lambda: Console(file=screen, force_terminal=True, width=40))
    monkeypatch.setattr(runs, "TERMINAL_LIMIT", 2)
    assert call() == EXIT_DONE
    shown = screen.getvalue()
    assert "[red]x[/red]" in shown and "preempted" in shown and "finished" not in shown
    assert "and 2 more (--limit N)" in shown
    for path in [*runs_dir.glob("c/*"), *runs_dir.glob("[[]*/*")]:
        assert os.fspath(path.relative_to(runs_dir.parent)) in shown


def test_listing_imports_neither_torch_nor_rich_where_no_terminal_is(runs_dir: Path) -> None:
    """Start-up time is what a listing costs."""
    code = (
        "import argparse, sys; from flambeau.cli import runs; parser = argparse.ArgumentParser()\n"
        "runs.add_arguments(parser); runs.run(parser.parse_args([]))\n"
        "print({'torch', 'numpy', 'rich', 'yaml'} & set(sys.modules))"
    )
    root = Path(runs.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.fspath(root)}
    output = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert output.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (86399, "23 h"),
        (1e6, "11 d"),
    ],
)
def test_ages_are_in_their_largest_unit(seconds: float, text: str) -> None:
    """A clock that runs behind does not give a negative age."""
    assert runs.format_age(seconds) == text
