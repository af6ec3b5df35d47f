"""Fixtures of the data room's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.projects import InProcess, Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The small project, in a folder of its own."""
    return Project.write(tmp_path / "project")


@pytest.fixture
def flambeau(project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    """The command line, run in this process within the small project."""
    return InProcess(project, monkeypatch, capsys)
