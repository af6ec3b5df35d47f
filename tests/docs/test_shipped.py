"""What ships is complete: configurations that run, parts that are listed, extras that can be installed."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
import struct
import tomllib
from pathlib import Path

import numpy as np
import pytest
from pages import ROOT, prose

import flambeau
from flambeau.cli import main
from flambeau.config import load_config
from flambeau.config.project import SHIPPED
from flambeau.registry import register
from flambeau.registry.load import EXTRAS

CONFIGURATIONS = sorted(SHIPPED.glob("*.yaml"))
COMPLETE = [path.stem for path in CONFIGURATIONS if path.stem != "default"]
"""All but the one that the others stand on."""

SHORT = ["trainer.epochs=null", "trainer.steps=2", "trainer.debug=few_batches", "data.batch_size=4"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", COMPLETE)
def test_a_shipped_configuration_is_valid(name: str) -> None:
    """By its name, anywhere."""
    assert load_config(name).sources[-1] == SHIPPED / f"{name}.yaml"


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_editors_find_the_schema_of_a_shipped_configuration(path: Path) -> None:
    """The first line says where the page on configuration has it written."""
    assert path.read_text().split("\n")[0] == "# yaml-language-server: $schema=schema.json"
    assert "flambeau config --schema > configs/schema.json" in (ROOT / "docs" / "configuration.md").read_text()


@pytest.mark.parametrize("name", [name for name in COMPLETE if name != "torchvision"])
def test_a_shipped_configuration_trains(name: str) -> None:
    """Two steps of it."""
    assert main(["train", name, *SHORT, "--run-dir", "run"]) == 0
    assert json.loads(Path("run/status.json").read_text())["step"] == 2


@pytest.mark.parametrize("dataset", ["MNIST", "FashionMNIST"])
def test_the_torchvision_configuration_trains_on_the_files_that_it_fetches(folder: Path, dataset: str) -> None:
    """Had the download been made: the files have their format, and little in them."""
    raw = folder / "data" / dataset / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, size in (("train", 40), ("t10k", 10)):
        for kind, shape in (("images-idx3", (size, 28, 28)), ("labels-idx1", (size,))):
            header = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
            (raw / f"{prefix}-{kind}-ubyte").write_bytes(header + rng.integers(0, 10, shape, dtype=np.uint8).tobytes())
    options = [*SHORT, f"data.dataset={dataset}", "data.download=false"]
    assert main(["train", "torchvision", *options, "--run-dir", "run"]) == 0


@pytest.mark.torchvision
def test_a_network_of_torchvision_trains_by_its_import_path() -> None:
    """With its own arguments."""
    model = "model={name: torchvision.models.squeezenet1_1, num_classes: 10}"
    assert main(["train", "synthetic", model, "data.input_shape=[3, 32, 32]", *SHORT, "--run-dir", "run"]) == 0


def test_the_first_page_names_every_shipped_configuration() -> None:
    """In its table."""
    rows = re.findall(r"^\| `(\w+)` \|", prose(ROOT / "docs" / "getting-started.md"), re.MULTILINE)
    assert sorted(rows) == [path.stem for path in CONFIGURATIONS]


def test_the_page_on_the_run_folder_names_every_file_of_it() -> None:
    """What a run leaves is in the table, and what is in the table is not made up."""
    assert main(["train", "synthetic", *SHORT, "--run-dir", "run"]) == 0
    rows = re.findall(r"^\| `([\w.]+)/?` \|", prose(ROOT / "docs" / "run-folder.md"), re.MULTILINE)
    named = {row for row in rows if row.startswith(".") or "." in row or (Path("run") / row).is_dir()}
    # The patch is there only if the project's folder is under git and has changes, the other after a start point.
    assert {path.name for path in Path("run").iterdir()} == named - {"code.patch", "pretrained.json"}


def test_every_part_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """`flambeau list` reads files; what it finds is what is registered when they are imported."""
    for module in pkgutil.walk_packages(flambeau.__path__, "flambeau."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    recorded = {
        (kind, name) for (kind, name), part in register.recorded.items() if part.__module__.startswith("flambeau.")
    }
    capsys.readouterr()
    assert main(["list", "--json"]) == 0
    listing = json.loads(capsys.readouterr().out)
    listed = {(kind, part["name"]) for kind, parts in listing.items() for part in parts}
    assert {(kind if kind == "data" else f"{kind}s", name) for kind, name in recorded} <= listed
    assert len(recorded) > 20


def test_every_extra_that_a_message_names_can_be_installed() -> None:
    """`pip install 'flambeau[vision]'` brings what is missing."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set(EXTRAS.values())
    for path in (ROOT / "flambeau").rglob("*.py"):
        text = path.read_text()
        named |= {extra for names in re.findall(r"flambeau\[([\w,]+)\]", text) for extra in names.split(",")}
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "MissingExtraError":
                named |= {str(extra.value) for extra in node.args[1:] if isinstance(extra, ast.Constant)}
    assert named <= set(extras)
    assert {"digits", "tensorboard", "vision", "metrics"} <= named
