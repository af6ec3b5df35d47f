"""`trainer.alternate`: modules that train by turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import together
from support.projects import InProcess
from support.states import assert_same_runs
from support.tasks import points
from torch import nn
from torch.nn import functional as F

from flambeau import Batch, Trainer
from flambeau.config.sections import AlternateSettings
from flambeau.errors import UsageError
from flambeau.optim import Linear

TURNS = {"modules": [["body.*"], ["head"]], "every_steps": 2}


class Net(nn.Module):
    """Two modules that train by turns, and one that trains always."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Sequential(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(dropout))
        self.between = nn.Linear(6, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.head(self.between(self.body(inputs)))
        return outputs


class Watched(Trainer):
    """Keeps what moves in each step, and the modes that it is made in."""

    def update(self, batch: Batch) -> None:
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        modes = {name for name, module in self.model.named_modules() if module.training}
        super().update(batch)
        moved = {name for name, value in self.model.state_dict().items() if not torch.equal(value, before[name])}
        self.seen = [*getattr(self, "seen", []), (moved, modes)]


def make(model: nn.Module | None = None, *, turns: dict[str, Any] | None = None, **options: Any) -> Watched:
    model = Net() if model is None else model
    optimizer = options.pop("optimizer", torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1))
    options = {"device": "cpu", "batch_size": 8, "epochs": 3, "progress": False, "log_every": 1, **options}
    settings = AlternateSettings(**(turns or TURNS))
    return Watched(model, points(), nn.CrossEntropyLoss(), optimizer, alternate=settings, **options)


def top(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_only_whose_turn_it_is_moves_and_the_others_stand_still_in_evaluation_mode() -> None:
    """Weight decay, the optimizer's averages and the statistics of batch norm included."""
    trainer = make()
    trainer.fit()
    for step, (moved, modes) in enumerate(trainer.seen):
        turn = "body" if step // 2 % 2 == 0 else "head"
        assert top(moved) == {turn, "between"}, step
        resting = "head" if turn == "body" else "body.1"
        assert resting not in modes
        assert {"between", "body.1" if turn == "body" else "head"} <= modes
    steps = {trainer.optimizer.state[trainer.model.head.weight]["step"].item()}
    assert steps == {4}  # of 9, turns of 2
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    assert all(module.training for module in trainer.model.modules())


def test_weights_are_those_of_a_loop_written_by_hand() -> None:
    trainer = make(optimizer=None)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    batches = iter(make().feeder.batches())
    for step in range(9):
        batch = next(batches)
        model.train()
        turn, rest = (model.body, model.head) if step // 2 % 2 == 0 else (model.head, model.body)
        turn.requires_grad_(True)
        rest.requires_grad_(False).eval()
        optimizer.zero_grad()
        F.cross_entropy(model(batch.inputs), batch.targets).backward()
        optimizer.step()
    trainer.fit()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], value, rtol=1e-6, atol=1e-7)


def test_a_turn_may_last_epochs_and_a_schedule_begin_anew_in_each() -> None:
    """3 steps an epoch: the schedule runs over the 3 steps of a turn."""
    trainer = make(turns={**TURNS, "every_steps": None, "every_epochs": 1, "restart_schedule": True}, scheduler=Linear)
    trainer.fit()
    assert [top(moved) - {"between"} for moved, _ in trainer.seen] == [{"body"}] * 3 + [{"head"}] * 3 + [{"body"}] * 3
    rates = [record["lr"] for record in trainer.recorder.history if "lr" in record]
    assert rates == pytest.approx([0.01 * factor for factor in (1, 2 / 3, 1 / 3)] * 3)


def test_frozen_modules_stay_frozen_in_every_turn() -> None:
    trainer = make(turns={**TURNS, "modules": [["body", "between"], ["head"]]}, freeze=["between"])
    trainer.fit()
    assert not any("between" in top(moved) for moved, _ in trainer.seen)
    assert not any("between" in modes for _, modes in trainer.seen)


def test_turns_of_several_optimizers() -> None:
    """An optimizer whose parameters all rest makes no step; that is no skipped one."""
    answers: list[tuple[bool, bool]] = []

    class Two(Trainer):
        def update(self, batch: Batch) -> None:
            def loss() -> torch.Tensor:
                return F.cross_entropy(self.model(batch.inputs), batch.targets)

            answers.append((self.optimize("body", loss()), self.optimize("head", loss())))

    model = Net()
    optimizers = {
        "body": torch.optim.SGD([*model.body.parameters(), *model.between.parameters()], lr=0.1),
        "head": torch.optim.SGD(model.head.parameters(), lr=0.1),
    }
    settings = AlternateSettings(modules=[["body", "between"], ["head"]], every_steps=1)
    trainer = Two(model, points(), nn.CrossEntropyLoss(), optimizers, alternate=settings, device="cpu", steps=4,
                  progress=False)  # fmt: skip
    trainer.fit()
    assert answers == [(True, False), (False, True)] * 2
    assert trainer.state.skipped == 0


def float64(options: dict[str, Any]) -> dict[str, torch.Tensor]:
    trainer = make(precision="fp64", **options)
    trainer.fit()
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_several_processes_have_the_weights_of_one(ranks: int, accumulate: int) -> None:
    """Parameters that rest get no gradient, which torch's wrapper would wait for."""
    without_norm = {"modules": [["between"], ["head"]], "every_steps": 2}  # whose statistics are those of a part
    options = {"turns": TURNS} if accumulate == 1 else {"turns": without_norm, "freeze": ["body"]}
    expected = float64(options)
    for weights in together(ranks, float64, {**options, "accumulate": accumulate}):
        for name, value in expected.items():
            difference = (weights[name].double() - value.double()).norm()
            assert difference <= 1e-10 * value.double().norm().clamp_min(1e-3), name


@pytest.mark.parametrize("step", [12, *(pytest.param(step, marks=pytest.mark.slow) for step in (5, 17, 31))])
def test_left_in_any_turn_a_run_ends_with_the_same_bits(
    flambeau: InProcess, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """In the first turn, between two, in the second, and in the third; turns of 10 steps, 12 steps an epoch."""
    options = ("trainer.alternate={modules: [[body], [head]], every_steps: 10, restart_schedule: true}",
               "data.jitter=0.1", "trainer.ema={decay: 0.9}")  # fmt: skip
    flambeau("train", "tiny", *options, "--run-dir", "whole")
    monkeypatch.setenv("PREEMPT_AT", str(step))
    flambeau("train", "tiny", *options, "--run-dir", "left", expect=75)
    monkeypatch.delenv("PREEMPT_AT")
    flambeau("resume", "left")
    assert_same_runs(Path("whole"), Path("left"))


class TestRefusals:
    @pytest.mark.parametrize(
        ("turns", "options", "message"),
        [
            ({**TURNS, "modules": [["bdoy"], ["head"]]}, {}, r"trainer.alternate.modules.0: 'bdoy' matches no module"),
            ({**TURNS, "modules": [["body"], ["head"]]}, {"freeze": ["head"]}, "modules.1: there is nothing to train"),
            ({**TURNS, "every_epochs": 1}, {}, r"give either every_epochs or every_steps \(both given\)"),
            (TURNS, {"static_graph": True}, "trainer.static_graph does not go with trainer.alternate"),
        ],
    )
    def test_in_python(self, turns: dict[str, Any], options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            make(turns=turns, **options)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("{modules: [[body], [head]]}", "how long a turn is must be said once"),
            ("{modules: [[body]], every_steps: 3}", "there are not two turns"),
            ("{modules: [body, head], every_steps: 3}", "trainer.alternate.modules.0: expected a list"),
            ("{every_steps: 3}", "modules"),
            ("{modules: [[body], [head]], every_steps: 0}", "trainer.alternate.every_steps"),
        ],
    )
    def test_in_a_configuration(self, flambeau: InProcess, value: str, message: str) -> None:
        answer = flambeau("train", "tiny", f"trainer.alternate={value}", expect=2)
        assert message in answer.err
