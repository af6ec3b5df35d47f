"""Classification of tables: what is reported is of the data that it is said to be of, and exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import Runs

from flambeau.data.sklearn import SklearnTable

SHORT = ("trainer.epochs=1", "tracking=null")


def targets_of(data: SklearnTable, name: str) -> np.ndarray:
    part = getattr(data, name)
    return part.fetch(torch.arange(len(part)))[1].numpy()


def test_every_score_is_scikit_learns_of_the_predictions_of_its_own_split(runs: Runs) -> None:
    """Validation scores are not training scores; F1 is the data set's, though batches are ragged."""
    metrics = pytest.importorskip("sklearn.metrics")
    runs.train("breast_cancer", *SHORT, "data.eval_batch_size=7")
    data, seen = SklearnTable("breast_cancer"), {}
    for name in ("train", "val", "test"):
        seen[name] = scores = runs.evaluate(name)
        logits, targets = runs.predict(name).astype(float), targets_of(data, name)
        predicted = logits.argmax(1)
        assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(targets, predicted))
        assert scores["f1"] == pytest.approx(metrics.f1_score(targets, predicted))
        assert scores["precision"] == pytest.approx(metrics.precision_score(targets, predicted))
        assert scores["recall"] == pytest.approx(metrics.recall_score(targets, predicted))
        assert scores["auroc"] == pytest.approx(metrics.roc_auc_score(targets, logits[:, 1] - logits[:, 0]))
        probabilities = torch.from_numpy(logits).softmax(1).numpy()
        assert scores["loss"] == pytest.approx(metrics.log_loss(targets, probabilities), rel=1e-6)
    assert len({scores["loss"] for scores in seen.values()}) == 3


def test_the_scores_of_a_run_are_logged_under_the_split_that_they_are_of(
    runs: Runs, records: Callable[[Path], list[dict[str, float]]]
) -> None:
    """`val/f1` is the F1 of the validation rows; nothing measured on them is called train."""
    run = runs.train("wine", *SHORT)
    last = records(run)[-1]
    scores = runs.evaluate("val")
    assert {name: value for name, value in last.items() if name.startswith("val/")} == {
        f"val/{name}": pytest.approx(value) for name, value in scores.items()
    }
    assert not any(name.startswith("train/") for name in last)


@pytest.mark.parametrize("batch_size", [1, 7, 36, 1000])
def test_the_loss_that_is_reported_does_not_depend_on_the_batch_size(runs: Runs, batch_size: int) -> None:
    """A mean over samples: before training, about the ln 3 of guessing, whatever the batches are."""
    runs.train("wine", *SHORT, "trainer.epochs=0", f"data.eval_batch_size={batch_size}")
    whole = runs.evaluate("val")["loss"]
    assert whole == pytest.approx(math.log(3), rel=0.25)
    logits, targets = (
        torch.from_numpy(runs.predict("val")).double(),
        torch.from_numpy(targets_of(SklearnTable("wine"), "val")),
    )
    assert whole == pytest.approx(torch.nn.functional.cross_entropy(logits, targets).item(), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "least"), [("wine", 0.95), ("breast_cancer", 0.95)])
def test_a_table_is_classified_as_well_as_by_logistic_regression(runs: Runs, config: str, least: float) -> None:
    """At least its stated accuracy on the test rows, and at most 2 % behind the reference over both parts held out."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    preprocessing, pipeline = pytest.importorskip("sklearn.preprocessing"), pytest.importorskip("sklearn.pipeline")
    runs.train(config)
    data, ours, theirs = SklearnTable(config), [], []  # type: ignore[arg-type]
    inputs = {
        name: getattr(data, name).fetch(torch.arange(len(getattr(data, name))))[0] for name in ("train", "val", "test")
    }
    reference = pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression())
    reference.fit(inputs["train"], targets_of(data, "train"))
    for name in ("val", "test"):
        ours.append(runs.evaluate(name)["accuracy"])
        theirs.append(reference.score(inputs[name], targets_of(data, name)))
    assert ours[1] >= least
    assert sum(ours) / 2 >= sum(theirs) / 2 - 0.02
