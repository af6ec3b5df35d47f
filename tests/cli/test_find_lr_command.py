"""`flambeau find-lr`: a sweep that suggests a rate, and leaves the project alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.projects import InProcess, environment

SHORT = ("--steps", "60")


def found(flambeau: InProcess, *arguments: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(flambeau("find-lr", *arguments, *SHORT, "--json").out)
    return result


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if "__pycache__" not in str(path)}


def test_it_says_a_rate_and_how_to_train_with_it(flambeau: InProcess) -> None:
    """For people: the curve as a row of blocks, the suggestion, the command that takes it, and where the curve is."""
    answer = flambeau("find-lr", "tiny", *SHORT, "--output", "curve")
    lines = {line.split()[0]: line for line in answer.out.splitlines() if line.strip()}
    assert "█" in lines["loss"]
    assert "valley" in lines["found"]
    assert lines["next"].split()[1:4] == ["flambeau", "train", "tiny"]
    assert flambeau(*lines["next"].split()[2:], "--run-dir", "run", "trainer.epochs=1").status == 0
    assert json.loads(Path("curve/curve.json").read_text())["config"] == "tiny"


def test_it_is_a_function_of_the_seed(flambeau: InProcess) -> None:
    """Twice the same, and another for another seed."""
    first, again = found(flambeau, "tiny"), found(flambeau, "tiny")
    assert first == again
    assert found(flambeau, "tiny", "seed=4")["losses"] != first["losses"]


def test_the_losses_are_those_of_training_with_the_growing_rate(flambeau: InProcess) -> None:
    """The first is the loss before any update; the rates grow by one factor from --from to --to."""
    flambeau("train", "tiny", "trainer.log_every=1", "trainer.epochs=1", "--run-dir", "run")
    loss = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])["train/loss"]
    result = found(flambeau, "tiny", "--from", "1e-5", "--to", "1e-2")
    rates = result["rates"]
    assert (rates[0], rates[-1], len(rates)) == (pytest.approx(1e-5), pytest.approx(1e-2), 60)
    assert rates[1] / rates[0] == pytest.approx(rates[-1] / rates[-2])
    assert result["losses"][0] == loss
    assert not result["diverged"]


def test_it_stops_when_the_loss_runs_away(flambeau: InProcess) -> None:
    """Long before the last of the rates, and all numbers in the file are numbers."""
    result = found(flambeau, "tiny", "optimizer={name: sgd, lr: 0.1}", "--to", "1e6")
    assert result["diverged"]
    assert len(result["rates"]) < 60
    assert result["suggestions"]["valley"] < result["rates"][-1]


def test_it_leaves_the_project_alone(flambeau: InProcess) -> None:
    """One folder under runs/, which is no run; no callback is called, no checkpoint written."""
    root = flambeau.project.root
    before = files(root)
    flambeau("find-lr", "tiny", *SHORT)
    new = files(root) - before
    assert {Path(path).name for path in new if (root / path).is_file()} <= {"curve.json", "curve.svg"}
    assert {Path(path).parts[:2] for path in new if len(Path(path).parts) > 1} == {("runs", "find-lr")}
    assert "find-lr" not in flambeau("runs").out


def test_the_rate_is_what_the_configuration_is_to_say(flambeau: InProcess) -> None:
    """Where rates are scaled to the batch, the one that is scaled; groups keep their ratio."""
    plain = found(flambeau, "tiny")
    scaled = found(flambeau, "tiny", "optimizer.lr_reference_batch=2")
    assert scaled["losses"] == plain["losses"]
    assert scaled["lr"] == pytest.approx(plain["lr"] / 4)
    assert found(flambeau, "tiny", "optimizer.groups=[{pattern: head.*, lr: 0.0}]")["losses"] != plain["losses"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "1", "--to", "0.1"], "goes up"),
        (["--steps", "3"], "20 steps at least"),
        (["optimizer.lr=0"], "optimizer.lr is 0"),
        (["optimizer.weigth_decay=0"], "did you mean 'weight_decay'"),
        (["--from", "1e5", "--to", "1e9", "optimizer={name: sgd, lr: 0.1}"], "--from"),
    ],
)
def test_what_cannot_be_swept_is_an_error(flambeau: InProcess, arguments: list[str], message: str) -> None:
    """Status 2 and one message, and no folder is left."""
    answer = flambeau("find-lr", "tiny", *arguments, expect=2)
    assert message in answer.err
    assert not (flambeau.project.root / "runs").exists()


def test_a_folder_that_holds_something_is_refused(flambeau: InProcess) -> None:
    """Nobody's files are written over."""
    Path("mine").mkdir()
    Path("mine/thesis.tex").touch()
    assert "not empty" in flambeau("find-lr", "tiny", "--output", "mine", expect=2).err


def test_the_curve_is_drawn_where_matplotlib_is_installed(flambeau: InProcess) -> None:
    """As an SVG whose text is text; else the message says what to install."""
    pytest.importorskip("matplotlib", reason="the extra `plots`")
    flambeau("find-lr", "tiny", *SHORT, "--output", "curve")
    assert "<svg" in Path("curve/curve.svg").read_text()


def test_without_matplotlib_it_says_what_to_install(flambeau: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are there all the same."""
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    answer = flambeau("find-lr", "tiny", *SHORT, "--output", "curve")
    assert "pip install 'flambeau[plots]'" in answer.out
    assert [path.name for path in Path("curve").iterdir()] == ["curve.json"]


def test_a_wrong_configuration_is_told_before_torch_is_imported(flambeau: InProcess) -> None:
    """As of every command."""
    code = (
        "import sys; from flambeau.cli import main; status = main(['find-lr', 'tiny', 'optimizer.rl=1']);"
        "print(status, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=flambeau.project.root, env=environment(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["2", "False"]


@pytest.mark.slow
def test_the_suggested_rate_trains_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The perceptron on the digits, from an optimizer whose default rate is far off: over 94 % after ten epochs."""
    from flambeau.cli import main

    monkeypatch.chdir(tmp_path)
    sgd = ["optimizer={name: sgd, lr: 1e-5, momentum: 0.9, weight_decay: 0}", "scheduler.warmup_steps=0"]

    def accuracy(lr: float, folder: str) -> float:
        assert main(["train", "mlp", *sgd, f"optimizer.lr={lr}", "trainer.epochs=10", "--run-dir", folder]) == 0
        return float(json.loads(Path(folder, "status.json").read_text())["best"]["value"])

    capsys.readouterr()
    assert main(["find-lr", "mlp", *sgd, "--json"]) == 0
    lr = json.loads(capsys.readouterr().out)["lr"]
    assert accuracy(lr, "found") > 0.94
    assert accuracy(1e-5, "before") < 0.7
