"""How well a language model foresees text: perplexity and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flambeau.metrics.base import RatioMetric, wide_dtype
from flambeau.registry import register


class _Likelihood(RatioMetric):
    """Sums -log p of each target, over all tokens of a data set, in float64.

    Args:
        ignore_index: targets of this value count for nothing.
        output: the key of the output, if outputs are a dict.
        target: the key of the target, if targets are a dict.
    """

    higher_is_better = False

    def __init__(
        self, ignore_index: int | None = None, *, output: str | None = None, target: str | None = None
    ) -> None:
        super().__init__(output=output, target=target)
        self.ignore_index = ignore_index

    def update(self, outputs: Any, targets: Any) -> None:
        outputs, targets = self.select(outputs, targets)
        if outputs.shape[:-1] != targets.shape:
            raise ValueError(
                f"outputs of shape {tuple(outputs.shape)} do not fit targets of shape {tuple(targets.shape)}: "
                "the classes are the last dimension of the outputs"
            )
        logits, targets = outputs.detach().flatten(0, -2), targets.flatten()
        if self.ignore_index is None:
            kept, count = targets, self._units(targets)
        else:
            counted = targets != self.ignore_index
            kept = targets.masked_fill(~counted, 0)
            count = self._units(kept, counted)
        # Each token's term in float32 at least, their sum in float64: a large vocabulary is not copied in float64.
        losses = F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), kept, reduction="none")
        if self.ignore_index is not None:
            losses = losses.masked_fill(~counted, 0.0)
        self.add(losses.sum(dtype=wide_dtype(losses.device)), count)

    def _units(self, targets: Tensor, counted: Tensor | None = None) -> int | Tensor:
        return targets.numel() if counted is None else counted.sum()


@register.metric("perplexity")
class Perplexity(_Likelihood):
    """exp of the mean of -log p over all tokens: outputs (N, ..., C) are logits, targets (N, ...) classes.

    Exact over the data set: neither the batch size nor ragged batches change it, as a mean of batches' perplexities
    would be changed.

    Args:
        ignore_index: targets of this value count for nothing.
        output: the key of the output, if outputs are a dict.
        target: the key of the target, if targets are a dict.
    """

    def compute(self) -> Tensor:
        return super().compute().exp()


@register.metric("bits_per_byte")
class BitsPerByte(_Likelihood):
    """-log2 p of all tokens over their bytes: outputs (N, ..., C) are logits, targets (N, ...) tokens.

    Texts cut into tokens differently can so be compared. Exact over the data set.

    Args:
        token_bytes: bytes of each token of the vocabulary; null: each token is one byte.
        ignore_index: targets of this value count for nothing.
        output: the key of the output, if outputs are a dict.
        target: the key of the target, if targets are a dict.
    """

    def __init__(
        self,
        token_bytes: Sequence[int] | None = None,
        ignore_index: int | None = None,
        *,
        output: str | None = None,
        target: str | None = None,
    ) -> None:
        super().__init__(ignore_index, output=output, target=target)
        self._token_bytes = None if token_bytes is None else torch.as_tensor(token_bytes, dtype=torch.int64)

    def _units(self, targets: Tensor, counted: Tensor | None = None) -> int | Tensor:
        if self._token_bytes is None:
            return super()._units(targets, counted)
        sizes = self._token_bytes.to(targets.device)[targets]
        return sizes.sum() if counted is None else (sizes * counted).sum()

    def compute(self) -> Tensor:
        return super().compute() / math.log(2)
