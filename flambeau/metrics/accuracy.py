"""Accuracy: how often the prediction is right."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from flambeau.metrics.base import RatioMetric
from flambeau.registry import register


@register.metric("accuracy")
class Accuracy(RatioMetric):
    """Share of right predictions, over all samples, pixels or labels alike ("micro").

    What counts as a prediction follows from the shapes:

    - outputs (N, C, ...), targets (N, ...): classes; the largest of the C scores against the class.
    - outputs (N, ...) or (N, 1, ...), targets (N, ...): floating outputs are binary scores, a label each,
      "yes" above `threshold`, against 0 and 1; integer outputs are compared as they are.

    Args:
        threshold: binary scores above it mean "yes": 0 for logits, 0.5 for probabilities.
        ignore_index: targets of this value count for nothing.
        output: the key of the output, if outputs are a dict.
        target: the key of the target, if targets are a dict.
    """

    higher_is_better = True

    def __init__(
        self,
        threshold: float = 0.0,
        ignore_index: int | None = None,
        *,
        output: str | None = None,
        target: str | None = None,
    ) -> None:
        super().__init__(output=output, target=target)
        self.threshold = threshold
        self.ignore_index = ignore_index

    def update(self, outputs: Any, targets: Any) -> None:
        outputs, targets = self.select(outputs, targets)
        self._add_right(decide(outputs, targets, self.threshold) == targets, targets)

    def _add_right(self, right: Tensor, targets: Tensor) -> None:
        if self.ignore_index is None:
            self.add(right.sum(), targets.numel())
        else:
            counted = targets != self.ignore_index
            self.add((right & counted).sum(), counted.sum())


@register.metric("top_k_accuracy")
class TopKAccuracy(Accuracy):
    """Share of targets among the k classes with the largest scores: outputs (N, C, ...), targets (N, ...).

    With fewer than k classes every prediction is right.

    Args:
        k: how many classes are taken.
        ignore_index: targets of this value count for nothing.
        output: the key of the output, if outputs are a dict.
        target: the key of the target, if targets are a dict.
    """

    def __init__(
        self,
        k: Annotated[int, Ge(1)] = 5,
        ignore_index: int | None = None,
        *,
        output: str | None = None,
        target: str | None = None,
    ) -> None:
        super().__init__(ignore_index=ignore_index, output=output, target=target)
        self.k = k

    def update(self, outputs: Any, targets: Any) -> None:
        outputs, targets = self.select(outputs, targets)
        _check_fit(outputs.shape[:1] + outputs.shape[2:], outputs, targets)
        best = outputs.topk(min(self.k, outputs.shape[1]), dim=1, sorted=False).indices
        self._add_right((best == targets.unsqueeze(1)).any(1), targets)


def decide(outputs: Tensor, targets: Tensor, threshold: float) -> Tensor:
    """The prediction for each target, of the targets' shape; what it is follows from the shapes, see `Accuracy`."""
    if outputs.ndim == targets.ndim + 1:
        _check_fit(outputs.shape[:1] + outputs.shape[2:], outputs, targets)
        if outputs.shape[1] > 1:
            return outputs.argmax(1)
        outputs = outputs[:, 0]
    _check_fit(outputs.shape, outputs, targets)
    return outputs > threshold if outputs.is_floating_point() else outputs


def _check_fit(shape: torch.Size, outputs: Tensor, targets: Tensor) -> None:
    if shape != targets.shape:
        raise ValueError(f"outputs of shape {tuple(outputs.shape)} do not fit targets of shape {tuple(targets.shape)}")
