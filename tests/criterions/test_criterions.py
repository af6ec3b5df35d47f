"""cross_entropy and mse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flambeau.criterions import MSE, CrossEntropy


def test_cross_entropy_is_torchs_to_the_bit() -> None:
    """Smoothing, weights and ignored targets go to torch's own function."""
    logits, targets = torch.randn(32, 5, 3), torch.randint(5, (32, 3))
    ours = CrossEntropy(label_smoothing=0.1, ignore_index=2, weight=[1.0, 2.0, 0.5, 1.0, 3.0])
    theirs = nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=2, weight=torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0]))
    assert torch.equal(ours(logits, targets), theirs(logits, targets))
    assert torch.equal(CrossEntropy()(logits, targets), nn.CrossEntropyLoss()(logits, targets))


def test_cross_entropy_takes_probabilities() -> None:
    """Targets of the outputs' shape, as mixup makes them."""
    logits, targets = torch.randn(8, 5), torch.rand(8, 5).softmax(1)
    assert torch.equal(CrossEntropy()(logits, targets), nn.CrossEntropyLoss()(logits, targets))


@pytest.mark.parametrize("wrong", [-100, -1, 5])
def test_a_class_that_does_not_exist_is_an_error(wrong: int) -> None:
    """torch's default passes over -100 in silence; here nothing is ignored unless asked."""
    with pytest.raises(IndexError):
        CrossEntropy()(torch.randn(3, 5), torch.tensor([0, wrong, 1]))


def test_weights_follow_the_criterion_to_its_device_and_dtype() -> None:
    """The class weights are a buffer."""
    criterion = CrossEntropy(weight=[1.0, 2.0]).double()
    assert criterion(torch.randn(4, 2).double(), torch.tensor([0, 1, 1, 0])).dtype == torch.float64


def test_mse_is_torchs_and_takes_integer_targets() -> None:
    """The mean over all elements."""
    outputs, targets = torch.randn(4, 3), torch.randn(4, 3)
    assert torch.equal(MSE()(outputs, targets), nn.MSELoss()(outputs, targets))
    whole = torch.randint(5, (4, 3))
    assert torch.equal(MSE()(outputs, whole), nn.MSELoss()(outputs, whole.float()))


def test_mse_refuses_shapes_that_would_be_broadcast() -> None:
    """(N, 1) against (N,) would compare every output with every target."""
    with pytest.raises(ValueError, match=r"\(4, 1\).*\(4,\)"):
        MSE()(torch.randn(4, 1), torch.randn(4))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_dense_targets_have_the_loss_that_torch_gives_them(label_smoothing: float) -> None:
    """Though each position is a row of its own, as CUDA's kernel for dense targets is not deterministic."""
    logits = torch.randn(3, 4, 5, 2, dtype=torch.float64)
    targets = torch.randint(4, (3, 5, 2))
    targets[0, 0] = 3
    ours = CrossEntropy(label_smoothing=label_smoothing, ignore_index=3)
    theirs = torch.nn.CrossEntropyLoss(label_smoothing=label_smoothing, ignore_index=3)
    torch.testing.assert_close(ours(logits, targets), theirs(logits, targets), rtol=1e-12, atol=0)
