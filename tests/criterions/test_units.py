"""Units: parts of a batch, weighed by their units, are the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from flambeau.criterions import MSE, CrossEntropy, reduction_of, units_of, weigh
from flambeau.errors import UsageError

WEIGHT = [0.3, 1.0, 2.5, 0.7]

CLASSES = [
    CrossEntropy(),
    CrossEntropy(label_smoothing=0.2),
    CrossEntropy(ignore_index=0),
    CrossEntropy(weight=WEIGHT),
    CrossEntropy(ignore_index=-1, weight=WEIGHT, label_smoothing=0.1),
    nn.CrossEntropyLoss(),
    nn.CrossEntropyLoss(ignore_index=1, weight=torch.tensor(WEIGHT)),
    F.cross_entropy,
]


def in_parts(criterion: Any, logits: Tensor, targets: Tensor, sizes: list[int]) -> Tensor:
    """The loss over all as a trainer adds it up over micro-batches."""
    total: Any = 0.0
    units: Any = 0
    for part_logits, part_targets in zip(logits.split(sizes), targets.split(sizes), strict=True):
        part_units = units_of(criterion, part_targets)
        total = total + weigh(criterion(part_logits, part_targets), part_units)
        units = units + part_units
    return total / units


@settings(max_examples=40, deadline=None)
@given(
    criterion=st.sampled_from(CLASSES),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    dense=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_cut_of_a_batch_gives_the_same_loss_and_gradient(
    criterion: Any, sizes: list[int], dense: bool, seed: int
) -> None:
    """1 x 32 and 32 x 1 are one update, with ragged targets, class weights and smoothing too."""
    generator = torch.Generator().manual_seed(seed)
    shape = (sum(sizes), 3) if dense else (sum(sizes),)
    targets = torch.randint(0, 4, shape, generator=generator)
    ignored = getattr(criterion, "ignore_index", -100)
    if getattr(criterion, "ignores", True):
        targets[torch.rand(shape, generator=generator) < 0.5] = ignored
        targets.view(-1)[0] = 3
    logits = torch.randn(shape[0], 4, *shape[1:], generator=generator, dtype=torch.float64, requires_grad=True)
    if isinstance(criterion, nn.Module):
        criterion = criterion.double()
    whole = criterion(logits, targets)
    (expected,) = torch.autograd.grad(whole, logits)
    parts = in_parts(criterion, logits, targets, sizes)
    (gradient,) = torch.autograd.grad(parts, logits)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    "criterion", [CrossEntropy(ignore_index=0, label_smoothing=0.1), nn.CrossEntropyLoss(ignore_index=0)]
)
def test_a_part_without_any_unit_counts_for_nothing(criterion: nn.Module) -> None:
    """Its mean is 0/0; neither the sum nor the gradient may become nan."""
    logits = torch.randn(4, 3, requires_grad=True)
    targets = torch.zeros(4, dtype=torch.int64)
    loss = weigh(criterion(logits, targets), units_of(criterion, targets))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None and torch.equal(logits.grad, torch.zeros(4, 3))


@pytest.mark.parametrize(
    "criterion",
    [
        nn.MSELoss(),
        MSE(),
        nn.L1Loss(),
        nn.SmoothL1Loss(),
        nn.HuberLoss(),
        nn.BCEWithLogitsLoss(),
        nn.SoftMarginLoss(),
        F.mse_loss,
        F.binary_cross_entropy_with_logits,
    ],
)
def test_losses_over_elements_count_elements(criterion: Any) -> None:
    """Their mean divides by every element of the targets; the parts then add up."""
    outputs, targets = torch.randn(7, 3).double(), torch.randint(2, (7, 3)).double()
    assert units_of(criterion, targets) == 21
    torch.testing.assert_close(in_parts(criterion, outputs, targets, [4, 2, 1]), criterion(outputs, targets))


def test_probabilities_count_samples() -> None:
    """Cross entropy of probabilities (N, C, ...) divides by everything but the classes."""
    targets = torch.rand(6, 4, 2).softmax(1).double()
    assert units_of(CrossEntropy(), targets) == 12
    assert units_of(CrossEntropy(weight=WEIGHT), targets) == 12
    logits = torch.randn(6, 4, 2).double()
    criterion = CrossEntropy(weight=WEIGHT).double()
    torch.testing.assert_close(in_parts(criterion, logits, targets, [5, 1]), criterion(logits, targets))


def test_a_criterion_may_count_its_own_units() -> None:
    """A method `units(targets)` comes before everything else."""

    class Tokens(nn.CrossEntropyLoss):
        def units(self, targets: dict[str, Tensor]) -> int:
            return int(targets["length"].sum())

    assert units_of(Tokens(), {"length": torch.tensor([3, 4])}) == 7


@pytest.mark.parametrize(
    "targets",
    [
        torch.zeros(5, 2),
        {"label": torch.zeros(5), "mask": torch.zeros(5, 9)},
        {"names": ["a", "b", "c", "d", "e"]},
        {"box": {"corner": torch.zeros(5, 4)}},
        (torch.zeros(5), torch.zeros(1)),
    ],
)
def test_an_unknown_criterion_is_a_mean_over_samples(targets: Any) -> None:
    """The first dimension of the first target."""
    assert units_of(lambda outputs, targets: outputs.sum(), targets) == 5
    assert units_of(nn.KLDivLoss(reduction="batchmean"), targets) == 5


def test_units_that_are_known_without_looking_are_numbers() -> None:
    """No operation on the device and no wait for it where nothing can be ignored."""
    targets = torch.zeros(5, dtype=torch.int64)
    assert type(units_of(CrossEntropy(), targets)) is int
    assert isinstance(units_of(CrossEntropy(ignore_index=0), targets), Tensor)


def test_targets_without_samples_are_refused_with_the_remedy() -> None:
    """The message says what to write."""
    with pytest.raises(UsageError, match=r"units\(targets\)"):
        units_of(lambda outputs, targets: outputs, 3.0)


def test_reductions_are_told_apart() -> None:
    """Mean, sum and batchmean are usable; a loss an element is not."""
    assert reduction_of(nn.MSELoss()) == "mean"
    assert reduction_of(nn.MSELoss(reduction="sum")) == "sum"
    assert reduction_of(nn.KLDivLoss(reduction="batchmean")) == "mean"
    assert reduction_of(F.cross_entropy) == "mean"
    with pytest.raises(UsageError, match=r"CrossEntropyLoss.*none"):
        reduction_of(nn.CrossEntropyLoss(reduction="none"))
