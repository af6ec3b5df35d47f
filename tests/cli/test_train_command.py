"""`flambeau train` and what it leaves behind."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from support.projects import InProcess
from support.states import assert_same_runs

from flambeau.config import load_config


def test_a_run_lies_in_its_own_folder_and_says_how_to_go_on(flambeau: InProcess) -> None:
    answer = flambeau("train", "tiny")
    (run,) = (flambeau.project.root / "runs" / "tiny").iterdir()
    shown = run.relative_to(flambeau.project.root)
    assert f"run    {shown}" in answer.out
    assert re.search(r"best   val/accuracy 0\.\d{4} at step \d+", answer.out)
    for command in ("evaluate", "predict"):
        assert f"flambeau {command} {shown}" in answer.out
    assert "Traceback" not in answer.err


def test_the_folder_explains_the_run(flambeau: InProcess) -> None:
    flambeau("train", "tiny", "optimizer.lr=0.02", "--run-dir", "run")
    run = flambeau.project.root / "run"
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml",
        "command.txt",
        "environment.json",
        "log.txt",
        "metrics.jsonl",
        "status.json",
        "checkpoints",
    }
    assert yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["lr"] == 0.02
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


def test_the_saved_configuration_trains_the_same_run_again(flambeau: InProcess) -> None:
    flambeau("train", "tiny", "optimizer.lr=0.02", "data.jitter=0.1", "--run-dir", "run")
    root = flambeau.project.root
    flambeau("train", "run/config.yaml", "--run-dir", "again")
    assert_same_runs(root / "run", root / "again")


@pytest.mark.parametrize("command", ["evaluate run --split test", "predict run --input test --output p.csv", "runs"])
def test_the_commands_that_it_proposes_work(flambeau: InProcess, command: str) -> None:
    flambeau("train", "tiny", "--run-dir", "run")
    flambeau(*command.split())


def test_tensorboard_files_hold_the_same_numbers_as_metrics(flambeau: InProcess) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flambeau("train", "tiny", "tracking=[tensorboard]", "--run-dir", "run")
    run = flambeau.project.root / "run"
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    written = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected = [(record["step"], record["val/loss"]) for record in written if "val/loss" in record]
    scalars = events.Scalars("val/loss") if "val/loss" in events.Tags()["scalars"] else events.Tensors("val/loss")
    assert [event.step for event in scalars] == [step for step, _ in expected]


def test_a_folder_of_something_else_is_refused(flambeau: InProcess) -> None:
    answer = flambeau("train", "tiny", "--run-dir", "configs", expect=2)
    assert "is not empty" in answer.err


def test_secrets_reach_no_file_of_the_run(flambeau: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither from the environment nor from the command line."""
    monkeypatch.setenv("MY_TOKEN", "s3cr3t-in-the-environment")
    monkeypatch.setenv("FLAMBEAU__VARS__API_KEY", "s3cr3t-by-override")
    (flambeau.project.root / "configs" / "secretive.yaml").write_text(
        "base: [tiny]\n"
        "vars: {token: '${env:MY_TOKEN}'}\n"
        "callbacks: {tally: {name: wary, token: '${vars.token}', key: '${vars.api_key}'}}\n"
    )
    parts = next(flambeau.project.root.glob("parts_*.py"))
    parts.write_text(
        parts.read_text()
        + """
@register.callback("wary")
class Wary(Callback):
    def __init__(self, token: str, key: str) -> None:
        assert token == "s3cr3t-in-the-environment" and key.startswith("s3cr3t")
"""
    )
    flambeau("train", "secretive", "--run-dir", "run", "tracking=[tensorboard]")
    run = flambeau.project.root / "run"
    leaks = [path for path in run.rglob("*") if path.is_file() and b"s3cr3t" in path.read_bytes()]
    assert leaks == []


@pytest.mark.parametrize("name", ["lenet", "mlp"])
def test_shipped_configurations_are_right(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    load_config(name)


@pytest.mark.parametrize("name", ["lenet", "mlp"])
def test_shipped_configurations_train(flambeau: InProcess, name: str) -> None:
    flambeau("train", name, "trainer.debug=few_batches", "trainer.test_at_end=true", "--run-dir", "run")


@pytest.mark.slow
def test_the_first_command_of_a_newcomer_reaches_97_percent(flambeau: InProcess) -> None:
    """No download, no account: `flambeau train lenet`."""
    flambeau("train", "lenet", "--run-dir", "run")
    best = json.loads((flambeau.project.root / "run/status.json").read_text())["best"]
    assert best["metric"] == "val/accuracy"
    assert best["value"] >= 0.97
