"""Area under the receiver operating characteristic, exact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from flambeau.metrics.base import MergeableMetric, wide_dtype
from flambeau.registry import register


@register.metric("auroc")
class AUROC(MergeableMetric):
    """Chance that a sample of a class has a higher score for it than one of another class; equal scores count half.

    This is the area under the ROC curve through all thresholds (Mann and Whitney, 1947; Fawcett, 2006, section 7), not
    an approximation on some. Outputs (N, C) are scores of C > 1 classes: each class against the rest by its probability
    and the mean over the classes that have both; of two classes it is the usual binary score. Outputs (N,) or (N, 1)
    are scores of class 1 against class 0. All scores are kept until `compute`: for millions of samples take
    torchmetrics' AUROC with thresholds.

    Args:
        logits: outputs of several classes are logits, and softmax makes probabilities of them; false takes them as
            they are.
        output: the key of the output, if outputs are a dict.
        target: the key of the target, if targets are a dict.
    """

    higher_is_better = True

    def __init__(self, logits: bool = True, *, output: str | None = None, target: str | None = None) -> None:
        super().__init__(output=output, target=target)
        self.logits = logits
        self._parts: list[Mapping[str, Tensor]] = []

    def update(self, outputs: Any, targets: Any) -> None:
        outputs, targets = self.select(outputs, targets)
        if outputs.ndim == 1:
            outputs = outputs[:, None]
        if targets.ndim == 2 and targets.shape[1] == 1:
            targets = targets[:, 0]
        if outputs.ndim != 2 or targets.shape != outputs.shape[:1]:
            raise ValueError(
                f"outputs of shape {tuple(outputs.shape)} do not fit targets of shape {tuple(targets.shape)}"
            )
        scores = outputs.detach().to(wide_dtype(outputs.device), copy=True)
        if scores.shape[1] > 1 and self.logits:
            # Of two classes the difference orders as the probability does, and never rounds to 1.
            scores = scores.diff(dim=1) if scores.shape[1] == 2 else scores.softmax(1)
        elif scores.shape[1] == 2:
            scores = scores[:, 1:]
        self.merge_state({"scores": scores, "targets": targets.detach().clone()})

    def merge_state(self, state: Mapping[str, Tensor]) -> None:
        if state:
            self._parts.append(state)

    def compute(self) -> Tensor:
        state = self.state_dict()
        if not state:
            return torch.tensor(torch.nan)
        scores, targets = state["scores"], state["targets"]
        classes = [1] if scores.shape[1] == 1 else range(scores.shape[1])
        areas = torch.stack([_area(column, targets == label) for column, label in zip(scores.T, classes, strict=True)])
        return areas.nanmean()

    def reset(self) -> None:
        self._parts = []

    def to(self, device: torch.device | str) -> Self:
        self._parts = [{name: value.to(device) for name, value in part.items()} for part in self._parts]
        return self

    def state_dict(self) -> dict[str, Tensor]:
        if not self._parts:
            return {}
        return {name: torch.cat([part[name] for part in self._parts]) for name in ("scores", "targets")}


def _area(scores: Tensor, positive: Tensor) -> Tensor:
    """The area of one class against the rest; nan if either is empty."""
    wide = wide_dtype(scores.device)
    _, place, count = scores.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    last_rank = count.cumsum(0).to(wide)
    ranks = (last_rank - (count.to(wide) - 1) / 2)[place]  # equal scores share the mean of their ranks
    positives = positive.sum().to(wide)
    negatives = len(scores) - positives
    area: Tensor = (ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    return area
