"""The trainer `joint`: one loss, and several optimizers that each train a part of the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.processes import together
from support.projects import InProcess
from support.states import assert_same_runs
from support.tasks import linear, make_trainer, points, weights

from flambeau.training.guard import NonFiniteError
from flambeau.training.joint import JointTrainer

MUON = (
    "optimizer=null",
    'optimizers={matrices: {name: torch.optim.Muon, lr: 0.02, parameters: ["*.0.weight", "head.weight"]}, '
    'rest: {name: adamw, lr: 0.01, parameters: ["*.bias", "body.1.weight"]}}',
    "trainer.name=joint",
)


def both(model: Any) -> Any:
    """Two optimizers that together do what one does."""
    return {
        "weight": torch.optim.SGD([model.weight], lr=0.1, momentum=0.9),
        "bias": torch.optim.SGD([model.bias], lr=0.1, momentum=0.9),
    }


def one(model: Any) -> Any:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def test_two_optimizers_of_one_loss_end_as_one_does() -> None:
    """Bit for bit: one backward pass, and then both steps."""
    alone, joint = make_trainer(linear(), optimizer=one, epochs=3), None
    alone.fit()
    joint = make_trainer(linear(), optimizer=both, epochs=3, kind=JointTrainer)
    joint.fit()
    assert torch.equal(weights(alone.model), weights(joint.model))
    last, other = alone.recorder.history[-1], joint.recorder.history[-1]
    assert last["train/loss"] == other["train/loss"]
    assert other["lr/weight"] == other["lr/bias"] == last["lr"]


def test_none_makes_a_step_where_one_gradient_is_not_finite() -> None:
    """The bias alone has a bad gradient in the second step: the weight stays too, and the run goes on or stops."""

    class Broken(JointTrainer):
        def training_step(self, batch: Any) -> torch.Tensor:
            loss = super().training_step(batch)
            if self.state.step == 1:
                before.append(weights(self.model))
                loss = loss + (self.model.bias * 0).sum().sqrt()  # type: ignore[operator, union-attr]
            if self.state.step == 2:
                before.append(weights(self.model))
            return loss

    before: list[torch.Tensor] = []
    options: dict[str, Any] = {"optimizer": both, "kind": Broken, "dry_batch": False}
    make_trainer(linear(), nan_policy="skip", **options).fit()
    assert torch.equal(*before)
    with pytest.raises(NonFiniteError):
        make_trainer(linear(), **options).fit()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 has it first")
def test_muon_trains_the_matrices_and_adamw_the_rest(flambeau: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """By configuration, and to the same bits after a resume."""
    flambeau("train", "tiny", *MUON, "--run-dir", "whole")
    monkeypatch.setenv("PREEMPT_AT", "20")
    flambeau("train", "tiny", *MUON, "--run-dir", "run", expect=75)
    monkeypatch.delenv("PREEMPT_AT")
    flambeau("resume", "run")
    assert_same_runs(flambeau.project.root / "whole", flambeau.project.root / "run")


def _train() -> list[float]:
    data = points(21, dtype=torch.float64)
    trainer = make_trainer(
        linear(dtype=torch.float64), data, optimizer=both, precision="fp64", epochs=3, kind=JointTrainer
    )
    trainer.fit()
    return weights(trainer.model).tolist()


@pytest.mark.slow
def test_two_processes_end_as_one_does() -> None:
    """Ragged batches too."""
    (expected,) = together(1, _train)
    for found in together(2, _train):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-10, atol=1e-12)
