"""Fixtures of the tasks' tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Runs


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runs:
    """Commands in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Runs(capsys)


@pytest.fixture
def records() -> Callable[[Path], list[dict[str, float]]]:
    """What a run has written down."""
    return lambda run: [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
