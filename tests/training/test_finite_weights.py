"""Before a checkpoint every weight is looked at: none that is not finite gets through, and none that is is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from flambeau.training.guard import weights_are_finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 7, -1])
def test_a_single_value_is_found(value: float, place: int) -> None:
    """In the last of several tensors, wherever it is."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        model[1].weight.view(-1)[place] = value
    assert not weights_are_finite(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_large_values_are_finite(dtype: torch.dtype) -> None:
    """Though the sum of their squares is not."""
    model = nn.Linear(8, 8).to(dtype)
    with torch.no_grad():
        model.weight.fill_(torch.finfo(dtype).max)
    assert weights_are_finite(model)
