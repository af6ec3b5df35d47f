"""The short forms of the old templates: what is typed arrives as it was typed, and the status comes back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.projects import ROOT

AWKWARD = [
    *("data.path=my data", 'note=it\'s "so"', "glob=*", "dollar=$HOME `id` ;x"),
    *("empty=", "", "--flag", "back\\slash", "line\nbreak"),
]


def called(folder: Path, script: str, arguments: Sequence[str], *, status: int = 0) -> list[str]:
    """What Python is called with, by a script that runs where there are files for a `*` to find."""
    python = folder / "fake python"
    python.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" > '{folder}/said'\nexit {status}\n")
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / script), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHON": str(python)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    return (folder / "said").read_text().split("\0")[:-1]


def test_train_passes_every_argument_as_it_is(tmp_path: Path) -> None:
    said = called(tmp_path, "train.sh", ["-d", "0,1", "-c", "my net", *AWKWARD])
    assert said == ["-m", "flambeau", "train", "my net", "-d", "0,1", *AWKWARD]


def test_options_may_come_in_any_order_and_devices_are_optional(tmp_path: Path) -> None:
    said = called(tmp_path, "train.sh", ["trainer.epochs=2", "-c", "lenet"])
    assert said == ["-m", "flambeau", "train", "lenet", "-d", "auto", "trainer.epochs=2"]


def test_several_machines(tmp_path: Path) -> None:
    arguments = ["-d", "2,3", "-a", "10.0.0.1", "-p", "29500", "-nn", "2", "-n", "1", "-c", "lenet", *AWKWARD]
    said = called(tmp_path, "multi_machine_train.sh", arguments)
    machines = ["--nodes", "2", "--node-rank", "1", "--master", "10.0.0.1:29500"]
    assert said == ["-m", "flambeau", "train", "lenet", "-d", "2,3", *machines, *AWKWARD]


@pytest.mark.parametrize("path", ["my run", "my run/config.yaml", "tester.train_cfg_path=my run/config.yaml"])
def test_inference_takes_the_folder_or_the_file_in_it(tmp_path: Path, path: str) -> None:
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / "config.yaml").write_text("")
    arguments = [path] if "=" in path else ["-p", path]
    said = called(tmp_path, "inference.sh", ["-d", "0", *arguments, "tester.use_best=False", "--split", "val"])
    evaluate = ["-m", "flambeau", "evaluate", "my run", "-d", "0"]
    assert said == [*evaluate, "--split", "test", "--checkpoint", "last", "--split", "val"]


@pytest.mark.parametrize("status", [1, 2, 75])
def test_the_status_comes_back(tmp_path: Path, status: int) -> None:
    called(tmp_path, "train.sh", ["-c", "lenet"], status=status)
    called(tmp_path, "inference.sh", ["-p", "run"], status=status)
    machines = ["-a", "h", "-p", "1", "-nn", "2", "-n", "0", "-c", "lenet"]
    called(tmp_path, "multi_machine_train.sh", machines, status=status)


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("train.sh", ["-d", "0"], "which configuration?"),
        ("train.sh", ["-c"], "-c needs a value"),
        ("multi_machine_train.sh", ["-c", "lenet", "-a", "h"], "-a, -p, -nn and -n are all needed"),
        ("inference.sh", ["-d", "0"], "which run?"),
    ],
)
def test_what_is_missing_is_said(script: str, arguments: list[str], said: str) -> None:
    done = subprocess.run(["bash", str(ROOT / "scripts" / script), *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr and "usage:" in done.stderr
