"""Scores from the confusion matrix: which class was taken for which, counted over a whole data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from annotated_types import Ge
from torch import Tensor

from flambeau.metrics.accuracy import decide
from flambeau.metrics.base import MergeableMetric, wide_dtype
from flambeau.registry import register

Average = Literal["macro", "micro", "weighted", "binary", "none"]


@register.metric("confusion_matrix")
class ConfusionMatrix(MergeableMetric):
    """How many samples, pixels or labels of class i were taken for class j: `confusion_matrix/i/j`.

    What counts as a prediction follows from the shapes, as for `accuracy`: outputs (N, C, ...) are scores of C classes,
    floating outputs of the targets' shape binary scores.

    Args:
        num_classes: classes; default: as many as the outputs have scores for, 2 for binary scores.
        threshold: binary scores above it mean class 1: 0 for logits, 0.5 for probabilities.
        ignore_index: targets of this value count for nothing.
        output: the key of the output, if outputs are a dict.
        target: the key of the target, if targets are a dict.
    """

    def __init__(
        self,
        num_classes: Annotated[int, Ge(2)] | None = None,
        threshold: float = 0.0,
        ignore_index: int | None = None,
        *,
        output: str | None = None,
        target: str | None = None,
    ) -> None:
        super().__init__(output=output, target=target)
        self.num_classes = num_classes
        self.threshold = threshold
        self.ignore_index = ignore_index
        self._counts: Tensor | None = None

    def update(self, outputs: Any, targets: Any) -> None:
        outputs, targets = self.select(outputs, targets)
        size = self.num_classes or _classes_of(outputs, targets)
        predicted, actual = decide(outputs, targets, self.threshold).flatten().long(), targets.flatten().long()
        cells = actual * size + predicted
        if self.ignore_index is not None:
            cells = torch.where(actual == self.ignore_index, size * size, cells)  # a cell that is thrown away
        if cells.device.type == "cpu":  # elsewhere a look would wait for the device
            _check_classes(predicted, size, None, "predictions")
            _check_classes(actual, size, self.ignore_index, "targets")
        counts = torch.zeros(size * size + 1, dtype=torch.int64, device=cells.device)
        counts.index_add_(0, cells, torch.ones_like(cells))
        self.merge_state({"counts": counts[:-1].view(size, size)})

    def merge_state(self, state: Mapping[str, Tensor]) -> None:
        if state:
            self._counts = state["counts"] if self._counts is None else self._counts + state["counts"]

    def compute(self) -> Tensor | dict[str, Tensor]:
        if self._counts is None:
            return torch.tensor(torch.nan)
        return {f"{i}/{j}": count for i, row in enumerate(self._counts) for j, count in enumerate(row)}

    def reset(self) -> None:
        self._counts = None

    def to(self, device: torch.device | str) -> Self:
        if self._counts is not None:
            self._counts = self._counts.to(device)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self._counts is None else {"counts": self._counts.clone()}


class _ClassScore(ConfusionMatrix):
    """A ratio for each class, from right predictions, predictions and targets of the class, and an average of them."""

    higher_is_better = True

    def __init__(
        self,
        average: Average = "macro",
        num_classes: Annotated[int, Ge(2)] | None = None,
        threshold: float = 0.0,
        ignore_index: int | None = None,
        *,
        output: str | None = None,
        target: str | None = None,
    ) -> None:
        super().__init__(num_classes, threshold, ignore_index, output=output, target=target)
        self.average = average

    def compute(self) -> Tensor:
        if self._counts is None:
            return torch.tensor(torch.nan)
        counts = self._counts.to(wide_dtype(self._counts.device))
        right, predicted, actual = counts.diagonal(), counts.sum(0), counts.sum(1)
        if self.average == "micro":
            return _ratio(*self._parts(right.sum(), predicted.sum(), actual.sum()))
        scores = _ratio(*self._parts(right, predicted, actual))
        if self.average == "binary":
            if len(scores) != 2:
                raise ValueError(f"average: binary is for 2 classes, and there are {len(scores)}")
            return scores[1]
        occurs = predicted + actual > 0
        if self.average == "none":
            return torch.where(occurs, scores, torch.nan)
        weights = actual if self.average == "weighted" else occurs.to(scores.dtype)
        return (scores * weights).sum() / weights.sum()

    def _parts(self, right: Tensor, predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
        """What is divided by what."""
        raise NotImplementedError


@register.metric("precision")
class Precision(_ClassScore):
    """Of the predictions of a class, the share that is right; 0 for a class that is never predicted.

    Args:
        average: over the classes. `macro`: the mean over those that occur among targets or predictions; `weighted`:
            each by its number of targets; `micro`: all predictions in one, which is the accuracy; `binary`: class 1 of
            two alone; `none`: one score a class.
        num_classes: classes; default: as many as the outputs have scores for, 2 for binary scores.
        threshold: binary scores above it mean class 1: 0 for logits, 0.5 for probabilities.
        ignore_index: targets of this value count for nothing.
        output: the key of the output, if outputs are a dict.
        target: the key of the target, if targets are a dict.
    """

    def _parts(self, right: Tensor, predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
        return right, predicted


@register.metric("recall")
class Recall(_ClassScore):
    """Of the targets of a class, the share that is found; its arguments are those of `precision`."""

    def _parts(self, right: Tensor, predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
        return right, actual


@register.metric("f1")
class F1(_ClassScore):
    """Harmonic mean of a class's precision and recall; its arguments are those of `precision`."""

    def _parts(self, right: Tensor, predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * right, predicted + actual


@register.metric("mean_iou")
class MeanIoU(_ClassScore):
    """Intersection over union of what is predicted as a class and what is of it (Jaccard index), the mean over classes.

    The areas are added up over the whole data set before they are divided. The arguments are those of `precision`.
    """

    def _parts(self, right: Tensor, predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
        return right, predicted + actual - right


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, 0 where there is nothing to divide by."""
    return torch.where(denominator > 0, numerator / denominator, 0.0)


def _classes_of(outputs: Tensor, targets: Tensor) -> int:
    if outputs.ndim == targets.ndim + 1 and outputs.shape[1] > 1:
        return outputs.shape[1]
    if outputs.is_floating_point():
        return 2
    raise ValueError("outputs that are classes do not say how many there are: give the metric num_classes")


def _check_classes(values: Tensor, size: int, ignored: int | None, what: str) -> None:
    wrong = (values < 0) | (values >= size)
    if ignored is not None:
        wrong &= values != ignored
    if wrong.any():
        raise ValueError(f"{what} must be classes from 0 to {size - 1}, and one is {int(values[wrong][0])}")
