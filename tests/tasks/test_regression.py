"""Regression: trained in a scale of its own, reported in the targets' unit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.commands import Runs
from torch import Tensor, nn

from flambeau import load_model
from flambeau.data.sklearn import SklearnTable


def split(data: SklearnTable, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets as they were measured."""
    part = getattr(data, name)
    inputs, targets = part.fetch(torch.arange(len(part)))
    return inputs.double().numpy(), targets.double().numpy()


SHORT = ("trainer.epochs=2", "tracking=null")


def test_every_score_is_in_the_targets_unit_and_is_scikit_learns(runs: Runs) -> None:
    """Of the numbers that `flambeau predict` writes and the numbers of the table, in ragged batches."""
    metrics = pytest.importorskip("sklearn.metrics")
    runs.train("diabetes", *SHORT, "data.eval_batch_size=13")
    data = SklearnTable("diabetes")
    for name in ("train", "val", "test"):
        scores, outputs, targets = runs.evaluate(name), runs.predict(name).astype(float), split(data, name)[1]
        assert scores["mae"] == pytest.approx(metrics.mean_absolute_error(targets, outputs), rel=1e-12)
        assert scores["rmse"] == pytest.approx(metrics.mean_squared_error(targets, outputs) ** 0.5, rel=1e-12)
        assert scores["r2"] == pytest.approx(metrics.r2_score(targets, outputs), rel=1e-10)
        assert scores["mape"] == pytest.approx(metrics.mean_absolute_percentage_error(targets, outputs), rel=1e-12)
        # The loss alone is in standard deviations of the training targets.
        assert scores["loss"] == pytest.approx((scores["rmse"] / data.target_std) ** 2, rel=1e-5)


def test_torchmetrics_measure_in_the_targets_unit_too(runs: Runs) -> None:
    pytest.importorskip("torchmetrics")
    runs.train(
        "diabetes", *SHORT, "metrics={mae: {name: mean_absolute_error}, theirs: {name: torchmetrics.MeanAbsoluteError}}"
    )
    scores = runs.evaluate("test")
    assert scores["theirs"] == pytest.approx(scores["mae"], rel=1e-6)
    assert scores["mae"] > 10  # units, not standard deviations


def test_a_file_of_raw_measurements_is_predicted_like_the_split(runs: Runs) -> None:
    """Standardised on the way in, in the targets' unit on the way out."""
    runs.train("diabetes", *SHORT)
    np.save("measured.npy", split(SklearnTable("diabetes"), "test")[0])
    outputs = runs.predict("measured.npy")
    np.testing.assert_array_equal(outputs, runs.predict("test"))
    assert 25 < outputs.mean() < 346  # the range of the targets


def test_the_scale_is_in_the_checkpoint(runs: Runs) -> None:
    """It goes wherever the weights go."""
    run = runs.train("diabetes", *SHORT)
    data = SklearnTable("diabetes")
    buffers = dict(load_model(run).named_buffers())
    assert sorted(round(float(value), 3) for value in buffers.values()) == sorted(
        round(value, 3) for value in (data.target_mean, data.target_std)
    )


def test_two_processes_report_what_one_does(runs: Runs) -> None:
    runs.train("diabetes", *SHORT, "data.eval_batch_size=13")
    alone = runs.evaluate("test", "-d", "cpu")
    together = runs.evaluate("test", "-d", "cpu", "--processes", "2")
    assert together == alone


class Wide(nn.Module):
    """A model of a user's own, which the last layer alone brings to the targets' unit."""

    def __init__(self, mean: float, std: float) -> None:
        from flambeau.models import Rescale

        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1), Rescale(mean, std))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs)
        return outputs


def test_a_model_of_ones_own_begins_at_the_mean_in_the_targets_unit() -> None:
    data = SklearnTable("diabetes")
    outputs = Wide(data.target_mean, data.target_std)(torch.zeros(3, 10))
    assert (outputs - data.target_mean).abs().max() < 2 * data.target_std


@pytest.mark.slow
def test_diabetes_is_predicted_as_well_as_by_linear_regression(runs: Runs) -> None:
    """Mean absolute error over validation and test: about that of least squares, far from that of the targets' mean."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    runs.train("diabetes")
    data = SklearnTable("diabetes")
    inputs, targets = split(data, "train")
    line = linear_model.LinearRegression().fit(inputs, targets)
    ours, linear, mean = [], [], []
    for name in ("val", "test"):
        held_out, answers = split(data, name)
        ours.append(runs.evaluate(name)["mae"])
        linear.append(abs(line.predict(held_out) - answers).mean())
        mean.append(abs(targets.mean() - answers).mean())
    assert sum(ours) / 2 <= 1.02 * sum(linear) / 2
    assert sum(ours) / 2 <= 0.75 * sum(mean) / 2
    assert runs.evaluate("test")["r2"] >= 0.4
