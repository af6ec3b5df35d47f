"""The dry batch before the first step: what it finds, and that it leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support.processes import together
from support.states import assert_same
from support.tasks import linear, make_trainer, points, sgd, weights
from torch import nn
from torch.utils.data import IterableDataset

from flambeau import Batch, Trainer
from flambeau.config.sections import EmaSettings
from flambeau.errors import UsageError
from flambeau.metrics import Accuracy
from flambeau.training.rehearsal import rehearse


class Restless(nn.Module):
    """Changes everything that a forward pass can change: buffers, attributes, its input, and random generators."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.4))
        self.head = nn.Linear(6, 3)
        self.momentum_copy = nn.Linear(4, 3).requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", None)
        self.register_buffer("mask", torch.ones(3))
        self.count = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1  # another tensor each time
        self.last = inputs[0].detach().clone()
        self.count += 1
        if not hasattr(self, "shift"):
            self.shift = float(inputs.sum())
        self.momentum_copy.weight.data = 0.9 * self.momentum_copy.weight.data + float(np.random.rand()) * self.count
        inputs.mul_(1.01)
        noise = random.random() * torch.randn(())
        outputs = self.head(self.body(inputs)) * self.mask + self.momentum_copy(inputs)
        return outputs + noise * self.calls + self.shift


class Drifting(nn.Module):
    """A criterion with a buffer that follows the loss, and scalars for the log."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(()))

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss = nn.functional.cross_entropy(outputs, targets)
        self.level.lerp_(loss.detach().to(self.level.dtype), 0.1)
        return loss + self.level, {"level": self.level.clone()}


class Stream(IterableDataset[Any]):
    """Samples that can be had only in order, and whose beginning is drawn."""

    def __iter__(self) -> Iterator[Any]:
        random.random()
        return iter([points(40)[index] for index in range(40)])


def everything(trainer: Trainer) -> dict[str, Any]:
    """All that a run leaves behind."""
    trainer.fit()
    scaler = trainer.precision.scaler
    assert isinstance(trainer.criterion, nn.Module)
    return {
        "model": trainer.model.state_dict(),
        "count": getattr(trainer.model, "count", None),
        "criterion": trainer.criterion.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler else None,
        "ema": trainer.ema.model.state_dict() if trainer.ema else None,
        "record": trainer.recorder.history,
        "random": [random.getstate(), np.random.get_state(), torch.get_rng_state()],
        "training": [module.training for module in trainer.model.modules()],
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "fp16"},
        {"precision": "bf16", "ema": EmaSettings(decay=0.9)},
        {"freeze": ["body"], "accumulate": 3},
        {"train_data": Stream(), "steps": 4, "val_data": Stream()},
        {"train_data": Stream(), "steps": 4, "workers": 1},
    ],
    ids=["plain", "fp16", "average", "frozen", "stream", "stream in a process"],
)
def test_a_run_has_the_same_bits_with_and_without_it(options: dict[str, Any]) -> None:
    runs = []
    for dry in (True, False):
        random.seed(5)
        np.random.seed(5)
        trainer = make_trainer(
            Restless(),
            criterion=Drifting(),
            optimizer=sgd(momentum=0.9),
            metrics={"accuracy": Accuracy()},
            log_every=1,
            dry_batch=dry,
            **{"val_data": points(11), **options},
        )
        runs.append(everything(trainer))
    assert_same(*runs)


def two_runs() -> list[dict[str, Any]]:
    """Two samples for two processes: one alone has no variance that batch norm could divide by."""
    options: dict[str, Any] = {"metrics": {"accuracy": Accuracy()}, "val_data": points(3), "log_every": 1}
    options["check_replicas_every"] = None  # a part of the model is of each process's own random numbers
    runs = []
    for dry in (True, False):
        random.seed(5)
        np.random.seed(5)
        trainer = make_trainer(
            Restless(), points(9), Drifting(), sgd(momentum=0.9), batch_size=2, drop_last=True, dry_batch=dry, **options
        )
        runs.append(everything(trainer))
    return runs


def test_several_processes_have_the_same_bits_with_and_without_it() -> None:
    for with_it, without in together(2, two_runs):
        assert_same(with_it, without)


def first_batch(trainer: Trainer) -> Batch:
    return next(trainer.batches(0))


def test_it_tells_which_buffers_the_training_pass_changes() -> None:
    trainer = make_trainer(Restless(), criterion=Drifting())
    batch_norm = {f"body.1.{name}": "batch_norm" for name in ("running_mean", "running_var", "num_batches_tracked")}
    found = rehearse(trainer, first_batch(trainer), None)
    assert found.changed_buffers == {"calls": "other", **batch_norm}
    # Nobody tried: then any may change.
    assert rehearse(trainer, None, None).changed_buffers == {"calls": "other", "mask": "other", **batch_norm}


class TestErrors:
    """They are the user's own, come before the first step, and say what they belong to."""

    @staticmethod
    def failure(trainer: Trainer) -> BaseException:
        with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
            trainer.fit()
        assert trainer.state.step == 0 and not trainer.optimizer.state
        return caught.value

    def test_of_training(self) -> None:
        error = self.failure(make_trainer(train_data=points(features=5)))
        assert error.__notes__ == [
            "this was the dry batch of training before step 1: "
            "Batch(size=8, inputs=Tensor(8, 5) float32, targets=Tensor(8,) int64)"
        ]

    def test_of_validation(self) -> None:
        error = self.failure(make_trainer(val_data=points(features=5)))
        assert "the dry batch of validation before step 1: Batch(size=20" in error.__notes__[0]

    def test_of_a_metric(self) -> None:
        trainer = make_trainer(val_data=points(), metrics={"accuracy": Accuracy(output="scores")})
        with pytest.raises(KeyError, match="scores") as caught:
            trainer.fit()
        assert "the dry batch of validation" in caught.value.__notes__[0]

    def test_of_memory(self) -> None:
        class Hungry(nn.Linear):
            def forward(self, inputs: torch.Tensor) -> torch.Tensor:
                return super().forward(inputs) + torch.zeros(1 << 60)

        with pytest.raises(RuntimeError, match="memory") as caught:
            make_trainer(Hungry(4, 3)).fit()
        assert any(note.startswith("trainer.micro_batch: auto") for note in caught.value.__notes__)

    def test_leave_no_trace_either(self) -> None:
        model = Restless()
        trainer = make_trainer(model, train_data=points(classes=9))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(IndexError):
            rehearse(trainer, first_batch(trainer), None)
        assert_same(dict(model.state_dict()), before)
        assert model.count == 0 and all(parameter.grad is None for parameter in model.parameters())


def test_a_metric_that_one_batch_is_too_little_for_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    class NeedsMany(Accuracy):
        def __init__(self) -> None:
            super().__init__()
            self.batches = 0

        def update(self, outputs: Any, targets: Any) -> None:
            super().update(outputs, targets)
            self.batches += 1

        def reset(self) -> None:
            super().reset()
            self.batches = 0

        def compute(self) -> torch.Tensor:
            if self.batches < 2:
                raise ValueError("only one class is there")
            return super().compute()

    trainer = make_trainer(val_data=points(), metrics={"many": NeedsMany()}, eval_batch_size=5)
    trainer.fit()
    assert "val/many" in trainer.recorder.last_scores
    said = capsys.readouterr().err
    assert said.count("the metric 'many' cannot be computed from one validation batch") == 1
    assert "ValueError: only one class is there" in said


class TwoHeads(nn.Module):
    """A model of which a part is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.used = linear()
        self.spare = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        self.scale = nn.Parameter(torch.ones(()))
        self.fixed = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.used(inputs)


class TestParametersWithoutGradient:
    NAMED = "5 parameters get no gradient from the loss: scale, spare.0 (weight, bias), spare.1 (weight, bias)"

    def test_one_process_warns_and_trains(self, capsys: pytest.CaptureFixture[str]) -> None:
        trainer = make_trainer(TwoHeads(), epochs=2)
        trainer.fit()
        assert trainer.state.step == 6
        assert capsys.readouterr().err.count(f"warning: {self.NAMED}; they stay as they are") == 1

    def test_several_processes_refuse_before_the_first_step(self) -> None:
        for message in together(2, _refused):
            assert message.startswith(self.NAMED) and "trainer.freeze" in message

    def test_what_is_frozen_is_not_missed(self, capsys: pytest.CaptureFixture[str]) -> None:
        make_trainer(TwoHeads(), freeze=["spare"]).fit()
        assert "1 parameters get no gradient from the loss: scale" in capsys.readouterr().err


def _refused() -> str:
    with pytest.raises(UsageError) as caught:
        make_trainer(TwoHeads()).fit()
    return str(caught.value)


def test_a_trainer_with_an_update_of_its_own_is_rehearsed_in_validation_only() -> None:
    class Twice(Trainer):
        losses: int = 0

        def update(self, batch: Batch) -> None:
            for _ in range(2):
                self.backward(self.training_step(batch))
                self.step()

        def training_step(self, batch: Batch) -> torch.Tensor:
            Twice.losses += 1
            return super().training_step(batch)

    make_trainer(kind=Twice, steps=1, val_data=points()).fit()
    assert Twice.losses == 2
    with pytest.raises(RuntimeError) as caught:
        make_trainer(kind=Twice, val_data=points(features=5)).fit()
    assert "the dry batch of validation" in caught.value.__notes__[0]


def test_gradients_that_were_there_stay() -> None:
    trainer = make_trainer()
    gradient = trainer.model.weight.grad = torch.ones(3, 4)
    before = weights(trainer.model)
    rehearse(trainer, first_batch(trainer), None)
    assert trainer.model.weight.grad is gradient and torch.equal(gradient, torch.ones(3, 4))
    assert trainer.model.bias.grad is None and torch.equal(before, weights(trainer.model))


def test_a_model_whose_sizes_the_first_batch_decides_is_left_alone() -> None:
    trainer = make_trainer(nn.LazyLinear(3), optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    rehearse(trainer, first_batch(trainer), None)
    assert nn.parameter.is_lazy(trainer.model.weight)
