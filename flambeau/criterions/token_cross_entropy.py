"""Cross entropy of tokens, the classes being the last dimension of the outputs."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval
from torch import Tensor

from flambeau.criterions.cross_entropy import CrossEntropy
from flambeau.registry import register


@register.criterion("token_cross_entropy")
class TokenCrossEntropy(CrossEntropy):
    """Mean cross entropy over tokens, of logits (N, ..., C) and classes (N, ...): outputs of language models.

    `cross_entropy` has the classes second, (N, C, ...), as images do; of (N, T, C) with T = C nobody could tell the two
    apart. A unit is a target that is not ignored, so micro-batches and processes with more tokens weigh more.

    Args:
        label_smoothing: share of the probability that is spread evenly over all classes
            (Szegedy et al., 2016, section 7).
        ignore_index: targets of this value count for nothing: padding.
    """

    def __init__(
        self, label_smoothing: Annotated[float, Interval(ge=0, le=1)] = 0.0, ignore_index: int | None = None
    ) -> None:
        super().__init__(label_smoothing=label_smoothing, ignore_index=ignore_index)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.shape[:-1] != targets.shape:
            raise ValueError(
                f"outputs of shape {tuple(outputs.shape)} do not fit targets of shape {tuple(targets.shape)}: "
                "the classes are the last dimension of the outputs"
            )
        return super().forward(outputs.flatten(0, -2), targets.flatten())
