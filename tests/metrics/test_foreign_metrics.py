"""Metrics that are not ours."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from flambeau.errors import UsageError
from flambeau.metrics import Accuracy, metric_values, prepare_metric


class Plain:
    """A metric of a user who knows nothing of Flambeau."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def update(self, outputs: Any, targets: Any) -> None: ...

    def compute(self) -> Any:
        return self.value

    def reset(self) -> None: ...


def test_any_object_with_the_three_methods_is_a_metric() -> None:
    """Nothing has to be inherited."""
    metric = Plain(0.5)
    assert prepare_metric("mine", metric) is metric
    assert isinstance(prepare_metric("accuracy", Accuracy()), Accuracy)


def test_an_object_without_them_is_refused_by_name() -> None:
    """The message names the label, the class and what is missing."""
    with pytest.raises(UsageError, match=r"'mine' \(Linear\).*update, compute, reset"):
        prepare_metric("mine", torch.nn.Linear(1, 1))


def test_torchmetrics_go_on_counting_from_a_saved_state() -> None:
    """Their counts are in `state_dict` once they are prepared; as they come, they are not."""
    classification = pytest.importorskip("torchmetrics.classification")
    first = prepare_metric("accuracy", classification.MulticlassAccuracy(num_classes=3, average="micro"))
    first.update(torch.eye(3), torch.tensor([0, 1, 1]))
    state = {key: value.clone() for key, value in first.state_dict().items()}
    assert state
    second = prepare_metric("accuracy", classification.MulticlassAccuracy(num_classes=3, average="micro"))
    second.load_state_dict(state)
    for metric in (first, second):
        metric.update(torch.eye(3), torch.tensor([0, 1, 2]))
    assert second.compute() == first.compute()


def test_values_are_numbers_by_label() -> None:
    """Dicts and vectors are spread out, with a name for each number."""
    values = metric_values(
        {
            "number": Plain(1),
            "scalar": Plain(torch.tensor(0.5)),
            "classes": Plain(torch.tensor([0.25, 0.75])),
            "dict": Plain({"map": torch.tensor(2.0), "recall": torch.tensor([3])}),
            "none": Plain(torch.tensor(torch.nan)),
        }
    )
    assert math.isnan(values.pop("none"))
    assert values == {
        "number": 1.0,
        "scalar": 0.5,
        "classes/0": 0.25,
        "classes/1": 0.75,
        "dict/map": 2.0,
        "dict/recall/0": 3.0,
    }
    assert all(type(value) is float for value in values.values())
