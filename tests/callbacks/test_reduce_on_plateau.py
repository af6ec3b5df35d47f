"""`reduce_on_plateau`: torch's decisions, in every checkpoint, the same in all processes."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.processes import together
from support.projects import CONFIG, InProcess, Project
from support.states import assert_same_runs
from support.tasks import linear, make_trainer, points
from torch.optim.lr_scheduler import ReduceLROnPlateau

from flambeau.callbacks import ReduceOnPlateau
from flambeau.errors import UsageError
from flambeau.run_folder import read_metrics

PLATEAU = "callbacks.reduce_on_plateau={factor: 0.5, patience: 0, min_delta: 10}"
"""No change of a score is that large: every validation but the first halves the rate."""


@given(
    scores=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.35, 0.4, 1.0, math.nan]), max_size=40),
    mode=st.sampled_from(["min", "max"]),
    patience=st.integers(0, 4),
    cooldown=st.integers(0, 3),
    min_delta=st.sampled_from([0.0, 0.07]),
    leave=st.integers(0, 40),
)
def test_it_decides_as_torchs_scheduler(
    scores: list[float], mode: Any, patience: int, cooldown: int, min_delta: float, leave: int
) -> None:
    """For any scores, NaN among them, and if its state goes through a checkpoint somewhere."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torchs = ReduceLROnPlateau(
            optimizer, mode, 0.5, patience, min_delta, "abs", cooldown=cooldown, min_lr=0.01, eps=0.0
        )
    options: dict[str, Any] = {
        "factor": 0.5, "patience": patience, "cooldown": cooldown, "min_delta": min_delta, "min_factor": 0.01,
    }  # fmt: skip
    own = ReduceOnPlateau(**options)
    trainer: Any = SimpleNamespace(
        monitor="val/score",
        mode=mode,
        steppers={"optimizer": SimpleNamespace(scale=1.0)},
        world=SimpleNamespace(broadcast=lambda value: value),
        recorder=SimpleNamespace(say=lambda text: None),
        state=SimpleNamespace(step=1),
    )
    for number, score in enumerate(scores):
        if number == leave:
            state = own.state_dict()
            own = ReduceOnPlateau(**options)
            own.load_state_dict(state)
        torchs.step(score)
        own.on_validation_end(trainer, {"val/score": score})
        assert trainer.steppers["optimizer"].scale == optimizer.param_groups[0]["lr"]


@pytest.fixture
def flambeau(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    """The command line, in a project whose schedule is a cosine."""
    return InProcess(Project.write(tmp_path / "project", config=CONFIG), monkeypatch, capsys)


def test_the_rate_is_the_schedules_times_what_it_has_come_to(flambeau: InProcess) -> None:
    """Halved after each epoch but the first, and said so."""
    flambeau("train", "tiny", "--run-dir", "plain", "trainer.log_every=12")
    answer = flambeau("train", "tiny", PLATEAU, "--run-dir", "run", "trainer.log_every=12")
    assert "the learning rates are now 0.5 of the schedule's" in answer.out
    rates = {
        name: [record["lr"] for record in read_metrics(Path(name) / "metrics.jsonl") if "lr" in record]
        for name in ("plain", "run")
    }
    assert rates["run"] == [rate * scale for rate, scale in zip(rates["plain"], [1, 1, 0.5, 0.25], strict=True)]


def test_a_resumed_run_ends_with_the_same_bits(flambeau: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left in the middle of an epoch, after two reductions."""
    flambeau("train", "tiny", PLATEAU, "--run-dir", "whole")
    monkeypatch.setenv("PREEMPT_AT", "40")
    flambeau("train", "tiny", PLATEAU, "--run-dir", "run", expect=75)
    monkeypatch.delenv("PREEMPT_AT")
    flambeau("resume", "run")
    root = flambeau.project.root
    assert_same_runs(root / "whole", root / "run")


def _train() -> Any:
    trainer = make_trainer(
        linear(dtype=torch.float64),
        points(24, dtype=torch.float64),
        val_data=points(16, seed=3, dtype=torch.float64),
        epochs=4,
        precision="fp64",
        callbacks=[ReduceOnPlateau(factor=0.5, patience=0, min_delta=10.0)],
    )
    trainer.fit()
    return trainer.stepper.scale, trainer.model.weight.tolist()  # type: ignore[union-attr, operator]


@pytest.mark.slow
def test_all_processes_decide_alike() -> None:
    """And come to the weights of one process."""
    ((scale, weights),) = together(1, _train)
    for other_scale, other in together(2, _train):
        assert other_scale == scale == 0.125
        torch.testing.assert_close(torch.tensor(other), torch.tensor(weights), rtol=1e-10, atol=1e-12)


def test_what_it_cannot_watch_is_an_error() -> None:
    """No validation, an unknown score, a score without its direction."""
    with pytest.raises(UsageError, match="no validation data"):
        make_trainer(callbacks=[ReduceOnPlateau()]).fit()
    with pytest.raises(UsageError, match="validation gives val/loss"):
        make_trainer(val_data=points(), callbacks=[ReduceOnPlateau(monitor="acuracy", mode="max")]).fit()
    with pytest.raises(UsageError, match="mode is missing"):
        ReduceOnPlateau(monitor="val/loss")
