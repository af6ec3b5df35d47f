"""A trainer may be copied out into a project and owned: one file, with nothing of the loop left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.projects import InProcess
from support.states import assert_same_runs

import flambeau.training.trainer


def copy_into(project: Path) -> None:
    """`flambeau/training/trainer.py` as the project's `trainers/mine.py`, under a name of its own."""
    source = Path(flambeau.training.trainer.__file__).read_text()
    source = source.replace('@register.trainer("default")\nclass Trainer(', '@register.trainer("mine")\nclass Mine(')
    source = source.replace("Trainer.update", "Mine.update")
    assert "class Mine(" in source
    (project / "trainers").mkdir()
    (project / "trainers" / "mine.py").write_text(source)


def test_a_copy_of_the_loop_makes_the_same_run_and_resumes_it(
    flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_into(flambeau.project.root)
    flambeau("train", "tiny", "--run-dir", "engine")
    monkeypatch.setenv("PREEMPT_AT", "17")
    flambeau("train", "tiny", "trainer.name=mine", "--run-dir", "copy", expect=75)
    monkeypatch.delenv("PREEMPT_AT")
    flambeau("resume", "copy")
    assert_same_runs(Path("engine"), Path("copy"))


def test_what_is_no_trainer_is_still_refused(flambeau: InProcess) -> None:
    (flambeau.project.root / "other.py").write_text("class Other:\n    def fit(self): ...\n    def update(self): ...\n")
    answer = flambeau("train", "tiny", "trainer.name=other.Other", expect=2)
    assert "other.Other is no trainer: it is not a flambeau Trainer" in answer.err
