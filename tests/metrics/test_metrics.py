"""The built-in metrics: exact over a data set, and torchmetrics' values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flambeau.metrics import (
    Accuracy,
    MeanAbsoluteError,
    MeanSquaredError,
    RatioMetric,
    RootMeanSquaredError,
    TopKAccuracy,
)

Data = tuple[Tensor, Tensor]


def classes(n: int, generator: torch.Generator) -> Data:
    return torch.randn(n, 5, generator=generator), torch.randint(5, (n,), generator=generator)


def pixels(n: int, generator: torch.Generator) -> Data:
    return torch.randn(n, 4, 3, 2, generator=generator), torch.randint(4, (n, 3, 2), generator=generator)


def probabilities(n: int, generator: torch.Generator) -> Data:
    return torch.rand(n, generator=generator), torch.randint(2, (n,), generator=generator)


def labels(n: int, generator: torch.Generator) -> Data:
    return torch.rand(n, 3, generator=generator), torch.randint(2, (n, 3), generator=generator)


def numbers(n: int, generator: torch.Generator) -> Data:
    return torch.randn(n, 3, generator=generator) * 100 + 50, torch.randn(n, 3, generator=generator)


CASES: dict[str, tuple[Callable[[], RatioMetric], str, dict[str, Any], Callable[[int, torch.Generator], Data]]] = {
    "classes": (Accuracy, "classification.MulticlassAccuracy", {"num_classes": 5, "average": "micro"}, classes),
    "pixels": (Accuracy, "classification.MulticlassAccuracy", {"num_classes": 4, "average": "micro"}, pixels),
    "ignored": (
        lambda: Accuracy(ignore_index=2),
        "classification.MulticlassAccuracy",
        {"num_classes": 5, "average": "micro", "ignore_index": 2},
        classes,
    ),
    "binary": (lambda: Accuracy(threshold=0.5), "classification.BinaryAccuracy", {}, probabilities),
    "labels": (
        lambda: Accuracy(threshold=0.5),
        "classification.MultilabelAccuracy",
        {"num_labels": 3, "average": "micro"},
        labels,
    ),
    "top 2": (
        lambda: TopKAccuracy(k=2),
        "classification.MulticlassAccuracy",
        {"num_classes": 5, "top_k": 2, "average": "micro"},
        classes,
    ),
    "absolute": (MeanAbsoluteError, "MeanAbsoluteError", {}, numbers),
    "squared": (MeanSquaredError, "MeanSquaredError", {}, numbers),
    "root": (RootMeanSquaredError, "MeanSquaredError", {"squared": False}, numbers),
}


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_torchmetrics(case: str) -> None:
    """Over ragged batches, to the precision that torchmetrics has (float32)."""
    torchmetrics = pytest.importorskip("torchmetrics")
    make, path, arguments, data = CASES[case]
    theirs_class = torchmetrics
    for name in path.split("."):
        theirs_class = getattr(theirs_class, name)
    ours, theirs = make(), theirs_class(**arguments)
    generator = torch.Generator().manual_seed(3)
    for size in (16, 1, 7):
        outputs, targets = data(size, generator)
        ours.update(outputs, targets)
        theirs.update(outputs, targets)
    torch.testing.assert_close(ours.compute().float(), theirs.compute().float())


@settings(max_examples=30, deadline=None)
@given(case=st.sampled_from(sorted(CASES)), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_the_cut_into_batches_does_not_change_a_value(case: str, sizes: list[int]) -> None:
    """Sums are in int64 and float64: one batch or many, ragged or not."""
    make, _, _, data = CASES[case]
    outputs, targets = data(sum(sizes), torch.Generator().manual_seed(0))
    whole, parts = make(), make()
    whole.update(outputs, targets)
    for part in zip(outputs.split(sizes), targets.split(sizes), strict=True):
        parts.update(*part)
    torch.testing.assert_close(parts.compute(), whole.compute(), rtol=1e-13, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", CASES)
def test_a_metric_of_no_data_is_nan(case: str) -> None:
    """Before the first batch and after a reset; no crash, no division error."""
    make, _, _, data = CASES[case]
    metric = make()
    assert math.isnan(metric.compute())
    metric.update(*data(4, torch.Generator().manual_seed(0)))
    metric.reset()
    assert math.isnan(metric.compute())


def test_a_batch_of_which_all_is_ignored_counts_for_nothing() -> None:
    """Alone it gives nan; beside others it changes nothing."""
    metric = Accuracy(ignore_index=0)
    metric.update(torch.tensor([[1.0, 0.0]] * 3), torch.zeros(3, dtype=torch.int64))
    assert math.isnan(metric.compute())
    metric.update(torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
    assert metric.compute() == 1


@pytest.mark.parametrize("case", CASES)
def test_counting_goes_on_from_a_saved_state(case: str) -> None:
    """The state is plain tensors; a metric that loads it continues as if never interrupted."""
    make, _, _, data = CASES[case]
    generator = torch.Generator().manual_seed(0)
    first, second = data(5, generator), data(3, generator)
    straight, before, after = make(), make(), make()
    straight.update(*first)
    before.update(*first)
    state = before.state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())
    before.update(*second)  # a state is a copy: what comes later is not in it
    after.load_state_dict(state)
    for metric in (straight, after):
        metric.update(*second)
    assert torch.equal(after.compute(), straight.compute())
    after.load_state_dict(make().state_dict())
    assert math.isnan(after.compute())


def test_a_large_data_set_is_counted_exactly() -> None:
    """float32 sums stop growing at 2**24; these do not."""
    metric = Accuracy()
    metric.load_state_dict({"sum": torch.tensor(2**24), "count": torch.tensor(2**24)})
    metric.update(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([1, 0]))
    assert metric.state_dict() == {"sum": torch.tensor(2**24 + 1), "count": torch.tensor(2**24 + 2)}


def test_one_output_a_sample_fits_flat_targets() -> None:
    """Logits (N, 1) of a binary model against (N,); above 0 means yes."""
    metric = Accuracy()
    metric.update(torch.tensor([[2.0], [-1.0], [0.5]]), torch.tensor([1, 0, 0]))
    assert metric.compute() == pytest.approx(2 / 3)


def test_integer_outputs_are_predictions_already() -> None:
    """They are compared as they are."""
    metric = Accuracy()
    metric.update(torch.tensor([3, 1, 2]), torch.tensor([3, 1, 0]))
    assert metric.compute() == pytest.approx(2 / 3)


def test_with_fewer_classes_than_k_all_is_right() -> None:
    """top-5 of three classes is all of them."""
    metric = TopKAccuracy(k=5)
    metric.update(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
    assert metric.compute() == 1


@pytest.mark.parametrize("metric", [Accuracy(), TopKAccuracy(), MeanSquaredError(), MeanAbsoluteError()])
def test_shapes_that_do_not_fit_are_refused(metric: RatioMetric) -> None:
    """Broadcasting would give a number that means nothing."""
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(3,\)"):
        metric.update(torch.randn(4, 3), torch.tensor([0, 1, 2]))


def test_outputs_and_targets_are_taken_from_dicts_by_name() -> None:
    """`output` and `target` say which; a dict of one needs no name."""
    outputs = {"head": torch.tensor([[0.0, 1.0]]), "features": torch.zeros(1, 9)}
    targets = {"class": torch.tensor([1]), "box": torch.zeros(1, 4)}
    metric = Accuracy(output="head", target="class")
    metric.update(outputs, targets)
    assert metric.compute() == 1
    alone = Accuracy(output="head")
    alone.update(outputs, {"class": torch.tensor([0])})
    assert alone.compute() == 0


def test_a_dict_without_the_named_entry_is_an_error_that_lists_what_there_is() -> None:
    """And so is one of several entries without a name, or a name without a dict."""
    outputs = {"head": torch.zeros(1, 2), "features": torch.zeros(1, 9)}
    with pytest.raises(KeyError, match=r"'haed'.*'head', 'features'"):
        Accuracy(output="haed").update(outputs, torch.tensor([1]))
    with pytest.raises(KeyError, match=r"'head', 'features'.*`output`"):
        Accuracy().update(outputs, torch.tensor([1]))
    with pytest.raises(KeyError, match="no dict"):
        Accuracy(output="head").update(torch.zeros(1, 2), torch.tensor([1]))
    with pytest.raises(TypeError, match="list"):
        Accuracy().update(torch.zeros(1, 2), ["a"])


def test_metrics_say_which_direction_is_better() -> None:
    """Accuracies up, errors down."""
    assert Accuracy.higher_is_better and TopKAccuracy.higher_is_better
    for metric in (MeanAbsoluteError, MeanSquaredError, RootMeanSquaredError):
        assert metric.higher_is_better is False


def test_a_gradient_does_not_stay_alive_through_a_metric() -> None:
    """What is kept is detached from the graph."""
    outputs = torch.randn(4, 3, requires_grad=True)
    for metric in (MeanSquaredError(), MeanAbsoluteError(), Accuracy()):
        metric.update(outputs, torch.zeros(4, 3))
        assert not metric.compute().requires_grad


def test_what_a_metric_is_given_is_left_as_it_is() -> None:
    """Sums are the metric's own tensors."""
    first = torch.tensor(1.0, dtype=torch.float64)
    metric = RatioMetric()
    for _ in range(3):
        metric.add(first, 1)
    assert first == 1
    assert metric.compute() == 1
