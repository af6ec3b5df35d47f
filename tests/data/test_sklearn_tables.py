"""scikit-learn's bundled tables as a data module."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from flambeau.data import EvalFeeder
from flambeau.data.sklearn import SklearnTable
from flambeau.errors import MissingExtraError


def rows(part: Any) -> list[list[float]]:
    inputs, targets = part.fetch(torch.arange(len(part)))
    return torch.cat([inputs, targets.view(len(inputs), 1).float()], 1).tolist()


@pytest.mark.parametrize("dataset", ["wine", "breast_cancer", "iris", "diabetes"])
def test_the_rows_are_those_that_scikit_learn_loads(dataset: Any) -> None:
    """Each in exactly one part."""
    datasets = pytest.importorskip("sklearn.datasets")
    data = SklearnTable(dataset, seed=1)
    bunch = getattr(datasets, f"load_{dataset}")(**({"scaled": False} if dataset == "diabetes" else {}))
    expected = np.concatenate([bunch.data, bunch.target[:, None]], 1).astype(np.float32).tolist()
    assert sorted([row for part in (data.train, data.val, data.test) for row in rows(part)]) == sorted(expected)
    assert data.num_features == bunch.data.shape[1]
    assert data.input_shape == (data.num_features,)


@pytest.mark.parametrize("dataset", ["wine", "breast_cancer", "iris"])
def test_each_class_is_held_out_in_proportion(dataset: Any) -> None:
    data = SklearnTable(dataset, val_fraction=0.3, test_fraction=0.1)
    parts = [torch.bincount(part.fetch(torch.arange(len(part)))[1], minlength=data.num_classes)
             for part in (data.train, data.val, data.test)]  # fmt: skip
    whole = sum(parts)
    for part, share in zip(parts, (0.6, 0.3, 0.1), strict=True):
        assert (part - share * whole).abs().max() <= 1


def test_inputs_are_standardised_by_the_training_rows_alone() -> None:
    """By the batch transform, which a file of raw measurements goes through too."""
    data = SklearnTable("wine")

    def standardised(part: Any) -> torch.Tensor:
        return next(EvalFeeder(part, batch_size=999, batch_transform=data.batch_transform).batches()).inputs

    train, val = standardised(data.train), standardised(data.val)
    assert train.mean(0).abs().max() < 1e-5
    assert (train.std(0, correction=0) - 1).abs().max() < 1e-5
    assert val.mean(0).abs().max() > 1e-2


def test_a_feature_that_is_always_the_same_is_not_divided_by_zero() -> None:
    """Here all are: there is one training row."""
    data = SklearnTable("iris", val_fraction=0.993, test_fraction=0.0)
    assert len(data.train) == 1
    batch = next(EvalFeeder(data.train, batch_size=9, batch_transform=data.batch_transform).batches())
    assert batch.inputs.tolist() == [[0.0] * 4]


def test_targets_of_a_regression_stay_in_their_unit_and_say_how_large_they_are() -> None:
    """The mean and standard deviation are those of the training rows; they have nothing of the others."""
    data = SklearnTable("diabetes")
    targets = data.train.fetch(torch.arange(len(data.train)))[1]
    assert targets.dtype is torch.float32 and targets.shape[1:] == (1,)
    assert data.target_mean == pytest.approx(targets.double().mean().item(), rel=1e-12)
    assert data.target_std == pytest.approx(targets.double().std(correction=0).item(), rel=1e-12)
    assert not hasattr(data, "num_classes")


def test_the_split_is_a_function_of_the_seed() -> None:
    first, again, other = (SklearnTable("wine", seed=seed) for seed in (3, 3, 4))
    assert rows(first.train) == rows(again.train) != rows(other.train)


def test_a_part_without_a_share_is_none() -> None:
    data = SklearnTable("iris", val_fraction=0.2, test_fraction=0.0)
    assert data.test is None and len(data.val) == 30


def test_scikit_learn_is_not_imported() -> None:
    """Only its files are read."""
    code = "import sys; from flambeau.data.sklearn import SklearnTable as T; T('wine'); print('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flambeau.data.sklearn_files.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"flambeau\[digits\]"):
        SklearnTable("wine")
