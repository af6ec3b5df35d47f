"""How many units (samples, tokens, pixels) the mean of a loss ran over.

Parts of a batch, on one device after another or on several at once, may be averaged only with the number of
units that each part's mean was taken over as its weight. With targets of ragged length, equal weights give
another gradient than the whole batch at once would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flambeau.errors import UsageError

Units = int | Tensor
"""A count known on the host, or a 0-dimensional tensor on the device where the targets themselves say it."""

_OVER_ELEMENTS: tuple[type[nn.Module], ...] = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.SoftMarginLoss,
    nn.HingeEmbeddingLoss,
    nn.PoissonNLLLoss,
    nn.GaussianNLLLoss,
    nn.KLDivLoss,
)
"""torch's losses whose `reduction="mean"` divides by the number of elements of the targets."""

_FUNCTIONS_OVER_ELEMENTS = frozenset(
    {
        F.mse_loss,
        F.l1_loss,
        F.smooth_l1_loss,
        F.huber_loss,
        F.binary_cross_entropy,
        F.binary_cross_entropy_with_logits,
        F.soft_margin_loss,
        F.hinge_embedding_loss,
        F.poisson_nll_loss,
        F.gaussian_nll_loss,
        F.kl_div,
    }
)


def reduction_of(criterion: Callable[..., Any]) -> Literal["mean", "sum"]:
    """Whether the loss is a mean over units (gradients are averaged) or their sum (gradients are added up).

    A criterion that says nothing is taken to average. torch's `batchmean` is a mean over samples.

    Raises:
        UsageError: the criterion does not reduce at all (`reduction="none"`).
    """
    reduction = getattr(criterion, "reduction", "mean")
    if reduction == "none":
        raise UsageError(
            f"the criterion {_name(criterion)} gives a loss for each element (reduction='none')",
            remedy="use reduction: mean, or sum",
        )
    return "sum" if reduction == "sum" else "mean"


def units_of(criterion: Callable[..., Any], targets: Any) -> Units:
    """The number of units that the criterion's mean over these targets divides by.

    - the criterion's own method `units(targets)`, if it has one;
    - `CrossEntropyLoss` and `NLLLoss`: targets that are not ignored, each counted by the weight of its class;
    - losses over elements (squared, absolute, binary cross entropy, ...): elements of the targets;
    - all others: samples, the first dimension of the (first) target.

    For a criterion that adds up, this is the number of units that the sum runs over.
    """
    return unit_counter(criterion)(targets)


def unit_counter(criterion: Callable[..., Any]) -> Callable[[Any], Units]:
    """`units_of` for one criterion, with the look at the criterion done once."""
    own: Callable[[Any], Units] | None = getattr(criterion, "units", None)
    if callable(own):
        return own
    if getattr(criterion, "reduction", None) == "batchmean":
        return count_samples
    if isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss):
        return _ClassUnits(criterion)
    if isinstance(criterion, _OVER_ELEMENTS) or criterion in _FUNCTIONS_OVER_ELEMENTS:
        return _count_elements
    if criterion is F.cross_entropy or criterion is F.nll_loss:
        return _ClassUnits(nn.CrossEntropyLoss())
    return count_samples


def weigh(loss: Tensor, units: Units) -> Tensor:
    """The loss times its units; 0 for no units at all, where the mean is 0/0 and would spoil the sum."""
    if isinstance(units, Tensor):
        return torch.where(units > 0, loss * units, 0.0)
    return loss * units if units else torch.zeros_like(loss)


def count_samples(targets: Any) -> int:
    """Samples in a batch of targets: the length of the first tensor or sequence in it.

    Raises:
        UsageError: there is none.
    """
    if isinstance(targets, Tensor):
        return targets.shape[0] if targets.ndim else 1
    if isinstance(targets, Mapping):
        for value in targets.values():
            if isinstance(value, Tensor | Mapping | Sequence):
                return count_samples(value)
    elif isinstance(targets, tuple):
        return count_samples(targets[0])
    elif isinstance(targets, Sequence):
        return len(targets)
    raise UsageError(
        f"cannot tell how many samples there are in targets of type {type(targets).__name__}",
        remedy="give the criterion a method units(targets)",
    )


class _ClassUnits:
    """Counts for cross entropy and negative log likelihood."""

    def __init__(self, criterion: nn.CrossEntropyLoss | nn.NLLLoss) -> None:
        self._criterion = criterion
        self._ignores = getattr(criterion, "ignores", True)

    def __call__(self, targets: Tensor) -> Units:
        if targets.is_floating_point():
            # Probabilities (N, C, ...): torch divides by everything but the classes, whatever their weights.
            return targets.numel() // targets.shape[1 if targets.ndim > 1 else 0]
        weight, ignore_index = self._criterion.weight, self._criterion.ignore_index
        if weight is None:
            return (targets != ignore_index).sum() if self._ignores else targets.numel()
        if not self._ignores:
            return weight[targets].sum()
        counted = targets != ignore_index
        return (weight[targets.masked_fill(~counted, 0)] * counted).sum()


def _count_elements(targets: Tensor) -> int:
    return targets.numel()


def _name(criterion: Callable[..., Any]) -> str:
    return getattr(criterion, "__name__", type(criterion).__name__)
