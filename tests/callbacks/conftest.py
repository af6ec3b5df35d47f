"""Fixtures of the callbacks' tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.projects import InProcess, Project

FUNCTIONS = """
CALLS = []


def note(trainer):
    CALLS.append(trainer.state.step)
    with open("calls.txt", "a") as file:
        file.write(f"{trainer.state.step} ")


def note_scores(trainer, scores):
    CALLS.append((trainer.state.step, sorted(scores)))
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The small project, in a folder of its own, with functions for callbacks to call."""
    return Project.write(tmp_path / "project", parts=FUNCTIONS)


@pytest.fixture
def flambeau(project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    """The command line, run in this process within the small project."""
    return InProcess(project, monkeypatch, capsys)
