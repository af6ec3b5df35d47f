"""`flambeau list`: what a configuration can name, for people and for programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flambeau.cli import main

MODEL = '''
from flambeau import register
from torch import nn
raise RuntimeError("imported")

@register.model("mine")
class Mine(nn.Module):
    """My model: images to logits.

    Args:
        width: factor on the channels.
    """
    def __init__(self, depth: int, width: float = 1.0): ...
'''


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a project with a model that must not be imported."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "mine.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_kind_lists_names_arguments_with_types_and_defaults_and_the_summary(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All that is needed to write the section of a configuration."""
    assert main(["list", "models"]) == 0
    shown = capsys.readouterr().out
    assert "mine  mine.Mine\n  My model: images to logits.\n    depth: int\n" in shown
    assert "    width: float = 1.0  # factor on the channels.\n" in shown
    assert "lenet  flambeau.models.lenet.LeNet" in shown


def test_without_a_kind_there_is_an_overview(capsys: pytest.CaptureFixture[str]) -> None:
    """One line a kind, with the names."""
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    models = next(line for line in lines if line.startswith("models"))
    assert {"lenet", "mine", "mlp"} <= set(models.replace(",", " ").split())


def test_engine_settings_are_listed_with_their_section(capsys: pytest.CaptureFixture[str]) -> None:
    """`trainer:` takes them whatever its part."""
    assert main(["list", "trainers"]) == 0
    assert "    log_every: int (>= 1) = 50  # Optimizer steps" in capsys.readouterr().out


def test_json_has_the_same_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """One object of lists; every kind without an argument."""
    assert main(["list", "--json"]) == 0
    listing = json.loads(capsys.readouterr().out)
    (mine,) = [part for part in listing["models"] if part["name"] == "mine"]
    assert mine["arguments"][0] == {"name": "depth", "type": "int", "required": True, "default": None, "doc": ""}
    assert listing["optimizers"] and listing["trainers"]


@pytest.mark.parametrize("word", ["model", "models", "MODELS"])
def test_a_kind_is_understood_in_singular_and_plural(word: str) -> None:
    """As people say it."""
    assert main(["list", word]) == 0


def test_an_unknown_kind_gives_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2 and a hint."""
    assert main(["list", "modles"]) == 2
    assert "did you mean 'models'?" in capsys.readouterr().err


def test_listing_imports_no_torch(project: Path) -> None:
    """All kinds at once, as a program asks for them."""
    code = (
        "import sys; from flambeau.cli import main; status = main(['list', '--json']);"
        "assert status == 0 and not {'torch', 'numpy', 'rich'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=environment, check=True, timeout=60, stdout=subprocess.DEVNULL
    )
