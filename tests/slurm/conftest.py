"""Fixtures of the tests of jobs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.projects import CONFIG, InProcess, Project
from support.slurm import DAEMONS, Cluster, cluster

NOTE = """

@register.callback("note")
class Note(Callback):
    def __init__(self, text: str = "", api_key: str | None = None) -> None:
        self.text = text
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The small project, in a folder of its own; its configuration has a place for any text, and for a secret."""
    return Project.write(tmp_path / "project", parts=NOTE, config=CONFIG.replace("beacon: {}", "beacon: {}, note: {}"))


@pytest.fixture
def flambeau(project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    """The command line, run in this process within the small project."""
    return InProcess(project, monkeypatch, capsys)


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    """A Slurm with two nodes."""
    missing = [daemon for daemon in DAEMONS if shutil.which(daemon) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: apt-get install slurmctld slurmd slurm-client munge")
    if os.geteuid() != 0:
        pytest.skip("the daemons of Slurm need root")
    with cluster() as slurm:
        yield slurm


@pytest.fixture
def slurm(running_cluster: Cluster) -> Iterator[Cluster]:
    """The same, with nothing on it after a test."""
    yield running_cluster
    running_cluster.cancel_all()
