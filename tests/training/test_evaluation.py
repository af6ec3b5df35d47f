"""Evaluation: exact over the data, without a trace in the run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.states import assert_same
from support.tasks import linear, make_trainer, points, weights
from torch import nn
from torch.utils.data import TensorDataset

from flambeau import Callback, Metric, Trainer
from flambeau.config import load_config
from flambeau.config.sections import EarlyStoppingSettings
from flambeau.errors import UsageError
from flambeau.metrics import Accuracy
from flambeau.training.build import build_trainer

IGNORED = -100


def loss_alone(model: nn.Module, data: TensorDataset, **arguments: Any) -> float:
    """What torch says of all the data at once, in float64."""
    inputs, targets = data.tensors
    return nn.functional.cross_entropy(model.double()(inputs.double()), targets, **arguments).item()


class TestExactness:
    @settings(max_examples=25, deadline=None)
    @given(size=st.integers(1, 60), batch=st.integers(1, 64))
    def test_the_mean_loss_is_that_of_all_data_at_once(self, size: int, batch: int) -> None:
        """Whatever the batch size, and however small the last batch is."""
        data = points(size)
        trainer = make_trainer(precision="fp64", eval_batch_size=batch)
        assert trainer.evaluate(data)["loss"] == pytest.approx(loss_alone(linear(), data), rel=1e-12)

    @pytest.mark.parametrize(
        "make",
        [
            lambda: nn.CrossEntropyLoss(ignore_index=0),
            lambda: nn.CrossEntropyLoss(weight=torch.tensor([0.1, 1.0, 5.0])),
            lambda: nn.CrossEntropyLoss(label_smoothing=0.2),
        ],
        ids=["ignored targets", "class weights", "label smoothing"],
    )
    @pytest.mark.parametrize("batch", [1, 7, 97])
    def test_losses_with_other_units_than_samples_are_exact_too(self, make: Any, batch: int) -> None:
        data = points(97)
        whole = make().double()(linear().double()(data.tensors[0].double()), data.tensors[1]).item()
        trainer = make_trainer(criterion=make(), precision="fp64", eval_batch_size=batch)
        assert trainer.evaluate(data)["loss"] == pytest.approx(whole, rel=1e-12)

    @pytest.mark.parametrize("batch", [1, 7, 97])
    def test_a_criterion_that_adds_up_is_reported_as_the_mean_over_units(self, batch: int) -> None:
        """Its sum would depend on the size of the batches."""
        data = points(97)
        trainer = make_trainer(criterion=nn.CrossEntropyLoss(reduction="sum"), precision="fp64", eval_batch_size=batch)
        assert trainer.evaluate(data)["loss"] == pytest.approx(loss_alone(linear(), data), rel=1e-12)

    def test_a_batch_without_any_target_counts_for_nothing(self) -> None:
        data = points(24)
        data.tensors[1][8:16] = IGNORED
        trainer = make_trainer(precision="fp64", eval_batch_size=8)
        assert trainer.evaluate(data)["loss"] == pytest.approx(loss_alone(linear(), data), rel=1e-12)

    @pytest.mark.parametrize(("size", "batch"), [(97, 1), (97, 8), (97, 5000), (1797, 64), (1797, 1797)])
    def test_metrics_are_those_of_scikit_learn_and_torchmetrics(self, size: int, batch: int) -> None:
        """Accuracy, and F1, which is no mean over batches."""
        from sklearn.metrics import accuracy_score, f1_score
        from torchmetrics.classification import MulticlassF1Score

        data = points(size)
        trainer = make_trainer(
            metrics={"accuracy": Accuracy(), "f1": MulticlassF1Score(num_classes=3)}, eval_batch_size=batch
        )
        scores = trainer.evaluate(data)
        predicted = linear()(data.tensors[0]).argmax(dim=1).numpy()
        targets = data.tensors[1].numpy()
        assert scores["accuracy"] == pytest.approx(accuracy_score(targets, predicted), rel=1e-12)
        assert scores["f1"] == pytest.approx(f1_score(targets, predicted, average="macro"), rel=1e-6)

    def test_a_metric_of_several_numbers_gives_a_score_each(self) -> None:
        from torchmetrics.classification import MulticlassRecall

        trainer = make_trainer(metrics={"recall": MulticlassRecall(num_classes=3, average=None)})
        scores = trainer.evaluate(points(30))
        assert set(scores) == {"loss", "recall/0", "recall/1", "recall/2"}

    def test_what_is_no_metric_is_refused(self) -> None:
        with pytest.raises(UsageError, match="has no method update"):
            make_trainer(metrics={"accuracy": lambda outputs, targets: 0.0})

    def test_the_default_batch_size_changes_nothing(self) -> None:
        data = points(97)
        scores = {
            size: make_trainer(batch_size=size, precision="fp64").evaluate(data)["loss"] for size in (1, 5, 32, 200)
        }
        assert list(scores.values()) == pytest.approx([loss_alone(linear(), data)] * 4, rel=1e-12)

    def test_each_sample_is_seen_once(self) -> None:
        class Seen(Metric):
            def reset(self) -> None:
                self.samples: list[float] = []

            def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
                self.samples += targets.tolist()

            def compute(self) -> float:
                assert self.samples == list(range(97))
                return 0.0

        data = TensorDataset(torch.randn(97, 4), torch.arange(97).float())
        trainer = make_trainer(
            criterion=lambda outputs, targets: outputs.mean(), metrics={"seen": Seen()}, eval_batch_size=10
        )
        assert trainer.evaluate(data)["seen"] == 0.0


class TestNoTrace:
    class Net(nn.Module):
        """Everything that an evaluation could disturb."""

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.dropout, self.layer = nn.BatchNorm1d(4), nn.Dropout(0.5), linear()
            self.norm.eval()  # a mode of its own, to be kept

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            torch.rand(3), np.random.rand(), random.random()
            return self.layer(self.dropout(self.norm(inputs)))

    def test_weights_buffers_generators_modes_and_gradients_stay(self) -> None:
        model = self.Net()
        trainer = make_trainer(model, metrics={"accuracy": Accuracy()})
        model(torch.ones(2, 4)).sum().backward()

        def state() -> Any:
            return {
                "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
                "gradients": [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None],
                "modes": [module.training for module in model.modules()],
                "torch": torch.get_rng_state(),
                "numpy": np.random.get_state(),
                "random": random.getstate(),
                "optimizer": trainer.optimizer.state_dict(),
                "position": trainer.state.state_dict(),
            }

        before = state()
        first, second = trainer.evaluate(points(30)), trainer.evaluate(points(30))
        assert_same(state(), before)
        assert first == second

    def test_a_run_that_is_validated_often_has_the_weights_of_one_that_is_not(self) -> None:
        def trained(**options: Any) -> torch.Tensor:
            model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), linear())
            trainer = make_trainer(model, epochs=2, shuffle=True, **options)
            trainer.fit()
            return weights(trainer.model)

        plain = trained()
        assert torch.equal(trained(val_data=points(), validate_every_steps=1), plain)
        assert torch.equal(trained(val_data=points(), metrics={"accuracy": Accuracy()}), plain)

    def test_an_error_within_it_leaves_the_modes_as_they_were(self) -> None:
        trainer = make_trainer(nn.Sequential(nn.Dropout(0.5), linear()))
        trainer.model.train()
        with pytest.raises(RuntimeError):
            trainer.evaluate(points(features=9))
        assert all(module.training for module in trainer.model.modules())


class TestWhen:
    def validations(self, **options: Any) -> list[int]:
        trainer = make_trainer(val_data=points(), **options)  # 3 steps an epoch
        trainer.fit()
        return [record["step"] for record in trainer.recorder.history if "val/loss" in record]

    def test_each_epoch_unless_told_otherwise(self) -> None:
        assert self.validations(epochs=3) == [3, 6, 9]

    def test_every_n_epochs_and_at_the_end(self) -> None:
        assert self.validations(epochs=5, validate_every_epochs=2) == [6, 12, 15]

    def test_every_n_steps_and_at_the_end(self) -> None:
        assert self.validations(epochs=3, validate_every_steps=4) == [4, 8, 9]

    def test_at_the_end_even_if_at_no_other_time(self) -> None:
        assert self.validations(epochs=2, validate_every_epochs=None) == [6]
        assert self.validations(steps=1) == [1]

    def test_at_the_end_of_a_run_that_a_callback_ends(self) -> None:
        class Stop(Callback):
            def on_step_end(self, trainer: Trainer) -> None:
                if trainer.state.step == 4:
                    trainer.stop("enough")

        assert self.validations(epochs=3, callbacks=[Stop()]) == [3, 4]

    def test_once_where_two_reasons_meet(self) -> None:
        assert self.validations(steps=6, validate_every_steps=3) == [3, 6]

    def test_a_run_of_no_steps_is_measured_as_it_is(self) -> None:
        assert self.validations(epochs=0) == [0]


class TestTest:
    def test_it_measures_the_best_checkpoint_once(self, tmp_path: Path) -> None:
        class Worse(Metric):
            """A score that falls, so the first validation is the best."""

            higher_is_better = True

            def __init__(self) -> None:
                super().__init__()
                self.value = 1.0

            def reset(self) -> None:
                self.value -= 0.1

            def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None: ...

            def compute(self) -> float:
                return self.value

        model, best = linear(), {}

        class Keep(Callback):
            def on_epoch_end(self, trainer: Trainer) -> None:
                best.setdefault("weights", weights(trainer.model))

        trainer = make_trainer(
            model,
            epochs=3,
            val_data=points(seed=1),
            test_data=points(seed=2),
            test_at_end=True,
            metrics={"falling": Worse()},
            callbacks=[Keep()],
            run_dir=tmp_path / "run",
        )
        trainer.fit()
        tested = [record for record in trainer.recorder.history if "test/loss" in record]
        assert len(tested) == 1
        assert trainer.state.best_step == 3
        last = weights(model)
        with torch.no_grad():
            nn.utils.vector_to_parameters(best["weights"], model.parameters())
        assert tested[0]["test/loss"] == trainer.evaluate(points(seed=2))["loss"]
        with torch.no_grad():
            nn.utils.vector_to_parameters(last, model.parameters())
        assert tested[0]["test/loss"] != trainer.evaluate(points(seed=2))["loss"]

    def test_the_model_in_training_keeps_its_last_weights(self, tmp_path: Path) -> None:
        trainer = make_trainer(
            epochs=2, val_data=points(), test_data=points(), test_at_end=True, run_dir=tmp_path / "run"
        )
        trainer.fit()
        assert trainer.store is not None
        newest = trainer.store.newest()
        assert newest is not None
        assert torch.equal(newest.load("model")["model"]["weight"], trainer.model.weight.detach())

    @pytest.mark.parametrize(
        ("setting", "missing"),
        [
            ({"test_at_end": True}, "no test data"),
            ({"early_stopping": EarlyStoppingSettings()}, "no validation data"),
            ({"monitor": "val/loss"}, "no validation data"),
        ],
    )
    def test_settings_without_the_data_they_need_are_refused_before_training(self, setting: Any, missing: str) -> None:
        """A run of days should not end with this."""
        with pytest.raises(UsageError, match=missing):
            make_trainer(**setting)

    @pytest.mark.parametrize("name", ["lenet", "mlp"])
    def test_splits_of_shipped_configurations_are_disjoint(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Validation is never the test set, nor the training set."""
        monkeypatch.chdir(tmp_path)
        trainer = build_trainer(load_config(name), device="cpu")
        splits = [trainer.train_data, trainer.val_data, trainer.test_data]
        images = [{image.numpy().tobytes() for image, _ in split} for split in splits]
        assert [len(split) for split in splits] == [1257, 270, 270]
        assert not images[0] & images[1]
        assert not images[0] & images[2]
        assert not images[1] & images[2]

    @pytest.mark.parametrize("name", ["lenet", "mlp"])
    def test_splits_follow_from_the_seed(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The same for every run and resume with one seed."""
        monkeypatch.chdir(tmp_path)

        def validation(seed: int) -> torch.Tensor:
            data = build_trainer(load_config(name, [f"seed={seed}"]), device="cpu").val_data
            return torch.stack([image for image, _ in data])

        assert torch.equal(validation(0), validation(0))
        assert not torch.equal(validation(0), validation(1))
