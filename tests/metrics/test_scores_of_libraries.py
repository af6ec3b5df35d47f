"""Scores that are no plain means: scikit-learn's and torchmetrics' values on ragged batches, however they are cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.processes import together
from torch import Tensor

from flambeau import Trainer
from flambeau.metrics import (
    AUROC,
    F1,
    PSNR,
    ConfusionMatrix,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanIoU,
    MeanSquaredError,
    MergeableMetric,
    Precision,
    R2Score,
    Recall,
    RootMeanSquaredError,
)

Data = tuple[Tensor, Tensor]
SIZES = (16, 1, 7, 29)
"""Of the batches: as ragged as an epoch's can be."""


def classes(n: int, generator: torch.Generator) -> Data:
    """Scores of 5 classes and targets of 4 of them, unevenly; the last is predicted but never right."""
    targets = (torch.rand(n, generator=generator) ** 2 * 4).long()
    return torch.randn(n, 5, generator=generator) + torch.eye(5)[targets], targets


def binary(n: int, generator: torch.Generator) -> Data:
    targets = torch.randint(2, (n,), generator=generator)
    return torch.randn(n, generator=generator).round(decimals=1) + targets, targets


def masks(n: int, generator: torch.Generator) -> Data:
    """3 classes of pixels, and some that count for nothing."""
    targets = torch.randint(4, (n, 3, 2), generator=generator)
    return torch.randn(n, 3, 3, 2, generator=generator), targets.masked_fill(targets == 3, 255)


def numbers(n: int, generator: torch.Generator) -> Data:
    targets = 100 + 20 * torch.randn(n, 2, generator=generator)
    return targets + 10 * torch.randn(n, 2, generator=generator), targets


def _sklearn(name: str, **arguments: Any) -> Callable[[Data], float]:
    def score(data: Data) -> float:
        metrics = pytest.importorskip("sklearn.metrics")
        outputs, targets = data
        predicted = outputs > 0 if outputs.ndim == 1 else outputs.argmax(1)
        counted = targets != 255
        return float(getattr(metrics, name)(targets[counted].numpy(), predicted[counted].numpy(), **arguments))

    return score


def _sklearn_numbers(name: str) -> Callable[[Data], float]:
    return lambda data: float(
        getattr(pytest.importorskip("sklearn.metrics"), name)(data[1].double().numpy(), data[0].double().numpy())
    )


def _sklearn_areas(data: Data) -> float:
    metrics = pytest.importorskip("sklearn.metrics")
    outputs, targets = data
    scores = outputs.double().softmax(1)
    areas = [metrics.roc_auc_score(targets == label, scores[:, label]) for label in range(4)]
    return float(sum(areas) / 4)


CASES: dict[str, tuple[Callable[[], MergeableMetric], Callable[[Data], float], Callable[[int, Any], Data]]] = {
    "f1 macro": (F1, _sklearn("f1_score", average="macro"), classes),
    "f1 micro": (lambda: F1("micro"), _sklearn("f1_score", average="micro"), classes),
    "f1 weighted": (lambda: F1("weighted"), _sklearn("f1_score", average="weighted"), classes),
    "f1 binary": (lambda: F1("binary"), _sklearn("f1_score"), binary),
    "precision macro": (Precision, _sklearn("precision_score", average="macro"), classes),
    "precision binary": (lambda: Precision("binary"), _sklearn("precision_score"), binary),
    "recall macro": (Recall, _sklearn("recall_score", average="macro", zero_division=0), classes),
    "recall weighted": (
        lambda: Recall("weighted"),
        _sklearn("recall_score", average="weighted", zero_division=0),
        classes,
    ),
    "recall binary": (lambda: Recall("binary"), _sklearn("recall_score"), binary),
    "iou": (MeanIoU, _sklearn("jaccard_score", average="macro"), classes),
    "iou of pixels": (lambda: MeanIoU(ignore_index=255), _sklearn("jaccard_score", average="macro"), masks),
    "auroc binary": (
        AUROC,
        lambda data: pytest.importorskip("sklearn.metrics").roc_auc_score(data[1], data[0]),
        binary,
    ),
    "auroc classes": (AUROC, _sklearn_areas, classes),
    "mae": (MeanAbsoluteError, _sklearn_numbers("mean_absolute_error"), numbers),
    "mse": (MeanSquaredError, _sklearn_numbers("mean_squared_error"), numbers),
    "rmse": (RootMeanSquaredError, lambda d: math.sqrt(_sklearn_numbers("mean_squared_error")(d)), numbers),
    "mape": (MeanAbsolutePercentageError, _sklearn_numbers("mean_absolute_percentage_error"), numbers),
    "r2": (R2Score, _sklearn_numbers("r2_score"), numbers),
}


def _batches(data: Data, sizes: Any) -> list[Data]:
    return list(zip(data[0].split(list(sizes)), data[1].split(list(sizes)), strict=True))


def _of(metric: Any, batches: list[Data]) -> Any:
    for batch in batches:
        metric.update(*batch)
    return metric.compute()


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_scikit_learn(case: str) -> None:
    """Of all samples together, though they come in ragged batches."""
    make, theirs, data = CASES[case]
    samples = data(sum(SIZES), torch.Generator().manual_seed(3))
    assert float(_of(make(), _batches(samples, SIZES))) == pytest.approx(theirs(samples), rel=1e-12)


@pytest.mark.parametrize(
    ("make", "path", "arguments", "data"),
    [
        (F1, "MulticlassF1Score", {"num_classes": 5}, classes),
        (lambda: Precision("micro"), "MulticlassPrecision", {"num_classes": 5, "average": "micro"}, classes),
        (lambda: Recall("weighted"), "MulticlassRecall", {"num_classes": 5, "average": "weighted"}, classes),
        (lambda: F1("binary"), "BinaryF1Score", {"threshold": 0.0}, binary),
        (AUROC, "BinaryAUROC", {}, binary),
        (lambda: MeanIoU(ignore_index=255), "MulticlassJaccardIndex", {"num_classes": 3, "ignore_index": 255}, masks),
    ],
    ids=["f1", "precision", "recall", "binary f1", "auroc", "iou"],
)
def test_values_are_those_of_torchmetrics(make: Any, path: str, arguments: Any, data: Any) -> None:
    """To the precision of its float32."""
    theirs = getattr(pytest.importorskip("torchmetrics.classification"), path)(**arguments)
    samples = data(sum(SIZES), torch.Generator().manual_seed(5))
    batches = _batches(samples, SIZES)
    if path == "BinaryF1Score":  # a threshold below 0 is not theirs: 0/1 in place of logits
        theirs, given_to_them = type(theirs)(), [((outputs > 0).long(), targets) for outputs, targets in batches]
    elif path == "BinaryAUROC":  # they guess for each batch whether it holds logits, and of one sample cannot know
        given_to_them = [(outputs.double().sigmoid(), targets) for outputs, targets in batches]
    else:
        given_to_them = batches
    assert float(_of(make(), batches)) == pytest.approx(float(_of(theirs, given_to_them)), rel=2e-6)


def test_r2_is_torchmetrics_too() -> None:
    theirs = pytest.importorskip("torchmetrics").R2Score()
    batches = _batches(numbers(sum(SIZES), torch.Generator().manual_seed(1)), SIZES)
    assert float(_of(R2Score(), batches)) == pytest.approx(float(_of(theirs, batches)), rel=1e-4)


def test_the_mean_of_the_batches_scores_is_another_number() -> None:
    """The defect that this guards against: F1 averaged over batches is not the F1 of the data set."""
    samples = classes(sum(SIZES), torch.Generator().manual_seed(3))
    batches = _batches(samples, SIZES)
    of_batches = sum(float(_of(F1(), [batch])) for batch in batches) / len(batches)
    assert abs(of_batches - float(_of(F1(), batches))) > 0.02


@settings(max_examples=40, deadline=None)
@given(case=st.sampled_from(sorted(CASES)), sizes=st.lists(st.integers(1, 9), min_size=3, max_size=6))
def test_the_cut_into_batches_does_not_change_a_value(case: str, sizes: list[int]) -> None:
    """One batch or many, ragged or not; merged from states of parts too."""
    make, _, data = CASES[case]
    samples = data(sum(sizes), torch.Generator().manual_seed(0))
    whole, merged = make(), make()
    expected = _of(whole, [samples])
    for batch in _batches(samples, sizes):
        part = make()
        part.update(*batch)
        merged.merge_state(part.state_dict())
    torch.testing.assert_close(merged.compute(), expected, rtol=1e-12, atol=0, equal_nan=True)
    torch.testing.assert_close(_of(make(), _batches(samples, sizes)), merged.compute(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", CASES)
def test_a_state_goes_on_where_it_was(case: str) -> None:
    """Saved, loaded into another metric and counted on."""
    make, _, data = CASES[case]
    first, second = _batches(data(40, torch.Generator().manual_seed(2)), (25, 15))
    metric, other = make(), make()
    metric.update(*first)
    other.update(*second)  # forgotten by what is loaded
    other.load_state_dict(metric.state_dict())
    assert torch.equal(_of(metric, [second]), _of(other, [second]))
    metric.reset()
    assert torch.equal(_of(metric, [second]), _of(make(), [second]))


@pytest.mark.parametrize("case", [*CASES, "psnr"])
def test_of_no_data_the_score_is_nan(case: str) -> None:
    """No crash, and no 0 that looks like a score."""
    metric = PSNR() if case == "psnr" else CASES[case][0]()
    assert math.isnan(metric.compute())
    metric.merge_state({})
    assert math.isnan(metric.compute())


class TestR2:
    def test_keeps_its_precision_where_the_mean_is_large(self) -> None:
        """A sum of squares less a square of the sum would have lost every digit."""
        _, targets = numbers(500, torch.Generator().manual_seed(0))
        outputs = targets + 1
        low = _of(R2Score(), _batches((outputs.double(), targets.double()), (300, 200)))
        high = _of(R2Score(), _batches((outputs.double() + 1e9, targets.double() + 1e9), (300, 200)))
        assert float(high) == pytest.approx(float(low), abs=1e-6)

    def test_of_one_target_is_nan_and_of_equal_ones_says_whether_they_are_met(self) -> None:
        assert math.isnan(_of(R2Score(), [(torch.ones(1), torch.ones(1))]))
        assert _of(R2Score(), [(torch.ones(4), torch.ones(4))]) == 1
        assert _of(R2Score(), [(torch.zeros(4), torch.ones(4))]) == 0


class TestClassScores:
    def test_none_gives_one_score_a_class_and_nan_where_there_is_no_such_class(self) -> None:
        outputs, targets = torch.eye(4)[[0, 0, 1]], torch.tensor([0, 1, 1])
        scores = _of(F1("none"), [(outputs, targets)])
        torch.testing.assert_close(scores, torch.tensor([2 / 3, 2 / 3, torch.nan, torch.nan]).double(), equal_nan=True)

    def test_the_confusion_matrix_names_target_and_prediction(self) -> None:
        matrix = _of(ConfusionMatrix(), [(torch.eye(3)[[0, 2, 2]], torch.tensor([0, 1, 2]))])
        assert {key: int(value) for key, value in matrix.items() if value} == {"0/0": 1, "1/2": 1, "2/2": 1}

    @pytest.mark.parametrize("wrong", [3, -1])
    def test_a_target_that_is_no_class_is_refused(self, wrong: int) -> None:
        with pytest.raises(ValueError, match=f"targets must be classes from 0 to 2, and one is {wrong}"):
            F1().update(torch.eye(3), torch.tensor([0, wrong, 1]))

    def test_predictions_that_are_classes_need_their_number(self) -> None:
        with pytest.raises(ValueError, match="num_classes"):
            F1().update(torch.tensor([0, 1]), torch.tensor([0, 1]))
        assert _of(F1(num_classes=2), [(torch.tensor([0, 1]), torch.tensor([0, 1]))]) == 1

    def test_binary_is_refused_for_more_than_two_classes(self) -> None:
        with pytest.raises(ValueError, match="there are 3"):
            _of(F1("binary"), [(torch.eye(3), torch.arange(3))])


class TestAuroc:
    def test_equal_scores_count_half(self) -> None:
        assert _of(AUROC(), [(torch.zeros(4), torch.tensor([0, 1, 1, 0]))]) == 0.5

    def test_two_logits_are_the_binary_score_of_their_difference(self) -> None:
        scores, targets = binary(50, torch.Generator().manual_seed(0))
        two = torch.stack([-scores / 2, scores / 2], 1)
        assert _of(AUROC(), [(two, targets)]) == _of(AUROC(), [(scores, targets)])

    def test_probabilities_are_taken_as_they_are_if_it_is_said_so(self) -> None:
        outputs, targets = classes(50, torch.Generator().manual_seed(0))
        probabilities = outputs.double().softmax(1)
        assert _of(AUROC(logits=False), [(probabilities, targets)]) == _of(AUROC(), [(outputs, targets)])

    def test_of_one_class_alone_is_nan(self) -> None:
        assert math.isnan(_of(AUROC(), [(torch.randn(3), torch.ones(3).long())]))


def test_psnr_is_of_the_total_squared_error() -> None:
    """Not the mean of the images' own ratios."""
    targets = torch.rand(4, 1, 3, 3)
    outputs = targets + torch.tensor([0.1, 0.1, 0.1, 0.4]).view(4, 1, 1, 1)
    expected = 10 * math.log10(2**2 / ((3 * 0.01 + 0.16) / 4))
    assert _of(PSNR(data_range=2.0), _batches((outputs, targets), (3, 1))) == pytest.approx(expected, rel=1e-6)
    theirs = pytest.importorskip("torchmetrics.image").PeakSignalNoiseRatio(data_range=2.0)
    assert _of(theirs, _batches((outputs, targets), (3, 1))) == pytest.approx(expected, rel=1e-5)


def _scores(metrics: dict[str, Any], data: Data) -> dict[str, float]:
    """What a trainer says of outputs that are its inputs."""
    trainer = Trainer(
        torch.nn.Identity(), list(zip(*data, strict=True)), None, torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]),
        metrics=metrics, steps=1, device="cpu", eval_batch_size=4, progress=False,
    )  # fmt: skip
    return trainer.evaluate(trainer.train_data)


@pytest.mark.parametrize(
    ("metrics", "data"),
    [
        ({"f1": F1(), "iou": MeanIoU(), "auroc": AUROC(), "confusion": ConfusionMatrix()}, classes),
        ({"r2": R2Score(), "mape": MeanAbsolutePercentageError(), "psnr": PSNR()}, numbers),
    ],
    ids=["classes", "numbers"],
)
def test_several_processes_give_the_bits_of_one(metrics: dict[str, Any], data: Any) -> None:
    """37 samples, which neither 2 nor 3 divide, in batches of 4; of 3 samples in 3 processes, two have nothing."""
    for size, ranks in ((37, 2), (37, 3), (3, 3)):
        samples = data(size, torch.Generator().manual_seed(1))
        expected = _scores(metrics, samples)
        for scores in together(ranks, _scores, metrics, samples):
            assert scores == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
