"""`flambeau.load_model(run)`: a trained model for use, from anywhere, with nothing of the run around it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.projects import InProcess, Project, environment
from torch import nn

from flambeau import load_model, load_run
from flambeau.cli import main
from flambeau.errors import CheckpointError, RunFolderError, UsageError

NO_DATA = '''

@register.data("vanishing")
class Vanishing(Points):
    """Cannot be built once a file is gone, as a data set that lies elsewhere."""

    def __init__(self, seed: int = 0) -> None:
        if not os.path.exists("data-is-here"):
            raise FileNotFoundError("the data set is not here")
        super().__init__(seed=seed)
'''


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project.write(tmp_path / "project", parts=NO_DATA)


@pytest.fixture
def run(flambeau: InProcess) -> Path:
    """A run whose data set has been taken away after it."""
    here = flambeau.project.root / "data-is-here"
    here.touch()
    flambeau("train", "tiny", "data.name=vanishing", "trainer.epochs=2", "--run-dir", "run")
    here.unlink()
    return flambeau.project.root / "run"


def weights(run: Path, part: str = "model", checkpoint: str = "best") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / checkpoint / f"{part}.safetensors")


def holds(model: nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(item, expected[name]) for name, item in model.state_dict().items())


def test_it_needs_nothing_of_the_data_set(run: Path) -> None:
    """What the model took from it (`${data.num_classes}`) lies in the run folder."""
    model = load_model(run)
    assert holds(model, weights(run))
    assert not any(module.training for module in model.modules())
    assert model(torch.zeros(2, 6)).shape == (2, 3)


def test_a_run_of_before_that_was_kept_is_loaded_with_its_data(flambeau: InProcess, run: Path) -> None:
    (run / "data_values.json").unlink()
    with pytest.raises(FileNotFoundError, match="the data set is not here"):
        load_model(run)
    (flambeau.project.root / "data-is-here").touch()
    assert holds(load_model(run), weights(run))


def test_it_leaves_the_random_generators_as_they_are(run: Path) -> None:
    """A program that trains may load another model meanwhile."""
    before = torch.get_rng_state()
    load_model(run)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("which", ["best", "last", 12])
def test_the_checkpoint_may_be_chosen(run: Path, which: str | int) -> None:
    link = which if isinstance(which, str) else f"step-{which:08d}"
    assert holds(load_model(run, checkpoint=which), weights(run, checkpoint=link))


def test_the_average_is_taken_where_the_monitored_score_is_of_it(flambeau: InProcess) -> None:
    """And only there: the weights are those that `flambeau evaluate` measures."""
    ema = ("trainer.epochs=2", "trainer.ema={decay: 0.9}")
    flambeau("train", "tiny", "--run-dir", "averaged", *ema, "trainer.monitor=val/ema/accuracy")
    flambeau("train", "tiny", "--run-dir", "plain", *ema)
    root = flambeau.project.root
    assert holds(load_model(root / "averaged"), weights(root / "averaged", "ema"))
    assert not holds(load_model(root / "averaged"), weights(root / "averaged", "model"))
    assert holds(load_model(root / "plain"), weights(root / "plain", "model"))


def test_the_best_of_a_loss_is_the_lowest(flambeau: InProcess) -> None:
    flambeau("train", "tiny", "--run-dir", "run", "metrics=null", "checkpoint.keep_last=9")
    run = flambeau.project.root / "run"
    best = load_run(run).status.best
    assert best is not None and best["metric"] == "val/loss"
    assert holds(load_model(run), weights(run, checkpoint=f"step-{best['step']:08d}"))
    assert load_run(run).checkpoint().step == best["step"]


def test_double_precision_stays(flambeau: InProcess) -> None:
    flambeau("train", "tiny", "--run-dir", "run", "trainer.epochs=1", "trainer.precision=fp64")
    model = load_model(flambeau.project.root / "run")
    assert {item.dtype for item in model.parameters()} == {torch.float64}


@pytest.mark.slow
def test_another_process_in_another_folder_loads_a_run_that_was_moved(run: Path, tmp_path: Path) -> None:
    """With the project around it, by an absolute path; neither the run folder nor the working directory matters."""
    moved = run.parent / "kept" / "model-7"
    moved.parent.mkdir()
    shutil.move(run, moved)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    program = f"""
import torch, flambeau
model = flambeau.load_model({str(moved)!r})
print(model.training, next(model.parameters()).device, model(torch.ones(1, 6)).tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=elsewhere, env=environment(), capture_output=True, text=True, check=True
    )
    expected = load_model(moved)(torch.ones(1, 6)).tolist()
    assert done.stdout.split("\n")[0] == f"False cpu {expected}"
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    ("path", "options", "error", "text"),
    [
        ("none", {}, RunFolderError, "does not exist"),
        ("run", {"checkpoint": 7}, CheckpointError, "steps that are there: 12, 24"),
        ("run", {"checkpoint": "newest"}, UsageError, "use best, last or a step"),
        ("run", {"device": "gpu"}, UsageError, "is not a device"),
    ],
)
def test_what_is_not_there_is_said(run: Path, path: str, options: dict[str, str], error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        load_model(run.parent / path, **options)


def test_a_run_that_flambeau_ships_the_model_of_needs_no_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "mlp", "trainer.epochs=1", "trainer.debug=one_batch", "--run-dir", "run"]) == 0
    assert load_model("run")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
