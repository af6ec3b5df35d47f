"""The focal loss, against numbers worked out by hand and against cross entropy."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from flambeau.criterions import CrossEntropy, FocalLoss, SigmoidFocalLoss, units_of


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("p", "gamma", "expected"),
    [(0.9, 2.0, 0.01 * -math.log(0.9)), (0.1, 2.0, 0.81 * -math.log(0.1)), (0.5, 0.5, math.sqrt(0.5) * math.log(2))],
)
def test_it_is_cross_entropy_times_what_is_missing_to_certainty(p: float, gamma: float, expected: float) -> None:
    """(1 - p)^gamma (-log p): a sure prediction counts a hundredth at gamma 2."""
    outputs = logits_of(p, (1 - p) / 2, (1 - p) / 2)
    assert FocalLoss(gamma)(outputs, torch.tensor([0])).item() == pytest.approx(expected, rel=1e-12)
    score = torch.tensor([math.log(p / (1 - p))], dtype=torch.float64)
    assert SigmoidFocalLoss(gamma, None)(score, torch.ones(1)).item() == pytest.approx(expected, rel=1e-12)
    assert SigmoidFocalLoss(gamma, 0.25)(score, torch.ones(1)).item() == pytest.approx(0.25 * expected, rel=1e-12)
    assert SigmoidFocalLoss(gamma, 0.25)(-score, torch.zeros(1)).item() == pytest.approx(0.75 * expected, rel=1e-12)


def test_with_gamma_0_it_is_cross_entropy() -> None:
    """For single and for dense targets, and of yes-or-no labels."""
    outputs, targets = torch.randn(3, 4, 5, 2).double(), torch.randint(4, (3, 5, 2))
    torch.testing.assert_close(FocalLoss(0.0)(outputs, targets), CrossEntropy()(outputs, targets))
    labels = torch.randint(2, outputs.shape)
    expected = nn.BCEWithLogitsLoss()(outputs, labels.double())
    torch.testing.assert_close(SigmoidFocalLoss(0.0, None)(outputs, labels), expected)


def test_factors_of_classes_weigh_targets_and_not_the_mean() -> None:
    """A mean over two targets, one of which counts three times."""
    outputs = torch.cat([logits_of(0.5, 0.5), logits_of(0.5, 0.5)])
    loss = FocalLoss(2.0, alpha=[1.0, 3.0]).double()(outputs, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((1 + 3) / 2 * 0.25 * math.log(2), rel=1e-12)


def test_ignored_targets_count_neither_in_the_sum_nor_in_the_units() -> None:
    criterion = FocalLoss(ignore_index=-1)
    outputs, targets = torch.randn(4, 3).double(), torch.tensor([0, -1, 2, -1])
    torch.testing.assert_close(criterion(outputs, targets), FocalLoss()(outputs[[0, 2]], targets[[0, 2]]))
    assert units_of(criterion, targets) == 2
    assert units_of(FocalLoss(), torch.zeros(2, 5)) == 10
    assert units_of(SigmoidFocalLoss(), torch.zeros(2, 5)) == 10


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_gradients_are_right_also_where_a_prediction_is_certain(gamma: float) -> None:
    """(1 - p)^gamma has no derivative at p = 1 for gamma below 1; there it is 0 and not NaN."""
    outputs = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(3, (5,))
    assert torch.autograd.gradcheck(lambda x: FocalLoss(gamma)(x, targets), outputs)
    certain = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    FocalLoss(gamma)(certain, torch.tensor([0, 1])).backward()
    assert certain.grad is not None
    assert torch.equal(certain.grad, torch.zeros(2, 2))
    scores = torch.tensor([200.0, -200.0], requires_grad=True)
    SigmoidFocalLoss(gamma)(scores, torch.tensor([1, 0])).backward()
    assert scores.grad is not None
    assert torch.equal(scores.grad, torch.zeros(2))


@pytest.mark.torchvision
def test_yes_or_no_labels_have_the_loss_of_torchvision() -> None:
    ops = pytest.importorskip("torchvision.ops")
    outputs, targets = torch.randn(6, 4), torch.randint(2, (6, 4)).float()
    expected = ops.sigmoid_focal_loss(outputs, targets, alpha=0.25, gamma=2.0, reduction="mean")
    torch.testing.assert_close(SigmoidFocalLoss()(outputs, targets), expected)


def test_soft_targets_can_be_smoothed_too() -> None:
    """cross_entropy spreads a share of probabilities as it does of classes."""
    outputs, classes = torch.randn(6, 4).double(), torch.randint(4, (6,))
    soft = nn.functional.one_hot(classes, 4).double()
    torch.testing.assert_close(CrossEntropy(0.1)(outputs, soft), CrossEntropy(0.1)(outputs, classes))
