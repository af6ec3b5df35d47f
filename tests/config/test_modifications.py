"""What is other than in a file, or than in another configuration: said, coloured, and without secrets."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from support.projects import InProcess, Project

from flambeau.cli import config as command
from flambeau.config import load_config
from flambeau.config.modifications import modifications, modifications_of_files


@pytest.fixture
def flambeau(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    return InProcess(Project.write(tmp_path / "project"), monkeypatch, capsys)


CHANGED = ["optimizer.lr=3e-4", "trainer.clip_norm=1", "callbacks.tally=null", "scheduler={name: constant}"]


def test_each_kind_of_change_is_told_with_where_it_comes_from(
    flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modified, added, removed, and of another type; nothing that is the same."""
    monkeypatch.setenv("FLAMBEAU__TRAINER__EPOCHS", "4")  # as in the file
    changes = modifications_of_files(load_config("tiny", CHANGED))
    assert [str(change) for change in changes] == [
        "- callbacks.tally: {}  # configs/tiny.yaml:9",
        "~ optimizer.lr: 0.01 -> 0.0003  # command line",
        "~ scheduler.name: cosine -> constant  # command line",
        "- scheduler.warmup_steps: 5  # configs/tiny.yaml:6",
        "+ trainer.clip_norm: 1  # command line",
    ]


def test_a_number_is_of_one_type_and_a_list_is_none(flambeau: InProcess) -> None:
    Path("configs/other.yaml").write_text("base: [tiny]\noptimizer: {lr: 1}\ntrainer: {micro_batch: 4}\n")
    changes = modifications(
        load_config("other"), load_config("other", ["optimizer.lr=1.0", "trainer.micro_batch=auto"])
    )
    assert [(change.kind, change.key) for change in changes] == [("type changed", "trainer.micro_batch")]
    assert changes[0].note == "was 4 (of another type)"


def test_the_tree_shows_what_was_there_before(flambeau: InProcess) -> None:
    out = flambeau("config", "tiny", *CHANGED).out
    lines = {text.strip(): origin for text, _, origin in (line.partition("  # ") for line in out.splitlines())}
    assert lines["lr: 0.0003"] == "command line, was 0.01"
    assert lines["clip_norm: 1"] == "command line, added"
    assert lines["log_every: 5"] == "configs/tiny.yaml:7"


def test_on_a_terminal_changes_have_colours(flambeau: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modified ones yellow, added ones green; what stands in a file none of these."""
    terminal = io.StringIO()
    screen = Console(file=terminal, force_terminal=True, color_system="standard", width=200)
    monkeypatch.setattr(command, "is_terminal", lambda: True)
    monkeypatch.setattr(command, "console", lambda: screen)
    flambeau("config", "tiny", "optimizer.lr=3e-4", "trainer.clip_norm=1", "model.dropout=0.1")
    lines = terminal.getvalue().splitlines()
    assert any("\x1b[33m" in line and "lr: 0.0003" in line for line in lines)
    assert any("\x1b[32m" in line and "clip_norm: 1" in line for line in lines)
    assert not any("\x1b[33m" in line or "\x1b[32m" in line for line in lines if "configs/tiny.yaml" in line)


def test_two_configurations_are_compared_by_name_or_by_run(flambeau: InProcess) -> None:
    """In words and as JSON; what is the same says so."""
    Path("configs/other.yaml").write_text("base: [tiny]\nseed: 4\nmetrics: {top_k_accuracy: {k: 2}}\n")
    assert flambeau("config", "other", "--diff", "tiny").out.splitlines() == [
        "+ metrics.top_k_accuracy.k: 2  # configs/other.yaml:3",
        "~ seed: 3 -> 4  # configs/other.yaml:2",
    ]
    assert flambeau("config", "tiny", "--diff", "tiny").out == "no differences\n"
    flambeau("train", "tiny", "trainer.epochs=1", "--run-dir", "run")
    (change,) = json.loads(flambeau("config", "tiny", "--diff", "run", "--json").out)
    assert (change["key"], change["before"], change["after"], change["kind"]) == (
        "trainer.epochs",
        "1",
        "4",
        "modified",
    )


def test_secrets_are_in_none_of_it(flambeau: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the tree nor in the log of a run."""
    Path("tracker.py").write_text(
        "from flambeau import Tracker, register\n\n\n@register.tracker('service')\nclass Service(Tracker):\n"
        "    def __init__(self, *, run_dir, resume_step=None, api_key: str = '') -> None:\n"
        "        super().__init__(run_dir=run_dir, resume_step=resume_step)\n\n"
        "    def log_scalars(self, values, step) -> None: ...\n"
    )
    monkeypatch.setenv("FLAMBEAU__TRACKING__SERVICE__API_KEY", "hunter2")
    assert "hunter2" not in flambeau("config", "tiny").out
    assert "hunter2" not in flambeau("config", "tiny", "--diff", "tiny").out
    flambeau("train", "tiny", "trainer.epochs=1", "--run-dir", "run")
    for path in Path("run").rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes(), path


def test_the_log_of_a_run_has_the_configuration_and_what_is_other_than_in_the_file(flambeau: InProcess) -> None:
    flambeau("train", "tiny", "optimizer.lr=3e-4", "trainer.epochs=1", "--run-dir", "run")
    log = Path("run/log.txt").read_text()
    assert "the configuration tiny:\n  seed: 3  # configs/tiny.yaml:1\n" in log
    assert "  lr: 0.0003  # command line, was 0.01\n" in log
    assert "    betas: [0.9, 0.999]  # default\n" in log
    assert (
        "other than in configs/tiny.yaml:\n  ~ optimizer.lr: 0.01 -> 0.0003  # command line\n"
        "  ~ trainer.epochs: 4 -> 1  # command line\n" in log
    )


def test_files_that_are_no_whole_configuration_by_themselves_are_no_hindrance(flambeau: InProcess) -> None:
    Path("configs/part.yaml").write_text("data: {name: points, batch_size: 8}\ncriterion: {name: cross_entropy}\n")
    given = ["model={name: dropnet}", "trainer.epochs=1"]
    changes = modifications_of_files(load_config("part", given))
    assert [str(change) for change in changes] == [
        "+ model.name: dropnet  # command line",
        "+ trainer.epochs: 1  # command line",
    ]
