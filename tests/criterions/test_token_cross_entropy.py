"""Cross entropy with the classes last."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from flambeau.criterions import CrossEntropy, TokenCrossEntropy, units_of


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_last_dimension_is_that_of_the_classes(label_smoothing: float) -> None:
    """Also where there are as many tokens as classes, and the classes could be taken for the second."""
    logits, targets = torch.randn(3, 5, 5), torch.randint(5, (3, 5))
    found = TokenCrossEntropy(label_smoothing)(logits, targets)
    assert torch.equal(found, nn.CrossEntropyLoss(label_smoothing=label_smoothing)(logits.transpose(1, 2), targets))
    assert not torch.equal(found, CrossEntropy(label_smoothing)(logits, targets))


def test_ignored_targets_count_neither_in_the_sum_nor_in_the_units() -> None:
    """The mean is over what is left, however it lies in the rows."""
    logits, targets = torch.randn(2, 4, 6), torch.tensor([[1, 2, -100, -100], [3, -100, -100, -100]])
    criterion = TokenCrossEntropy(ignore_index=-100)
    kept = torch.stack([logits[0, 0], logits[0, 1], logits[1, 0]])
    torch.testing.assert_close(criterion(logits, targets), nn.CrossEntropyLoss()(kept, torch.tensor([1, 2, 3])))
    assert units_of(criterion, targets) == 3


def test_without_ignored_targets_units_are_counted_without_looking_at_them() -> None:
    """A number on the host: nothing waits for the device."""
    units = units_of(TokenCrossEntropy(), torch.zeros(3, 7, dtype=torch.int64))
    assert units == 21
    assert isinstance(units, int)


@pytest.mark.parametrize("shape", [(2, 6, 4), (2, 4), (2, 3, 6)])
def test_outputs_that_do_not_fit_are_an_error(shape: tuple[int, ...]) -> None:
    """Logits with the classes second would train on nonsense."""
    with pytest.raises(ValueError, match="the classes are the last dimension"):
        TokenCrossEntropy()(torch.randn(shape), torch.zeros(2, 4, dtype=torch.int64))


def test_a_target_that_is_no_class_is_an_error() -> None:
    """-100 too, unless it is asked for."""
    wrong: Any = torch.tensor([[0, -100]])
    with pytest.raises(IndexError):
        TokenCrossEntropy()(torch.randn(1, 2, 3), wrong)
