"""Clipping by the norm of all gradients."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from flambeau.optim import clip_gradient_norm


@pytest.mark.parametrize("scale", [0.001, 1.0, 1000.0, float("inf"), float("nan")])
def test_clipping_is_torchs_to_the_bit(scale: float) -> None:
    """The norm that is given and every gradient, for small, large and broken gradients."""
    torch.manual_seed(0)
    nets = [nn.Linear(5, 3)]
    for parameter in nets[0].parameters():
        parameter.grad = torch.randn_like(parameter) * scale
    nets.append(copy.deepcopy(nets[0]))
    for parameter, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        other.grad = None if parameter.grad is None else parameter.grad.clone()
    expected = nn.utils.clip_grad_norm_(nets[0].parameters(), 1.0)
    norm = clip_gradient_norm(nets[1].parameters(), 1.0)
    assert torch.equal(norm, expected) or (norm.isnan() and expected.isnan())
    for parameter, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, rtol=0, atol=0, equal_nan=True)


def test_clipping_takes_gradients_of_any_kind() -> None:
    """None, several dtypes, or no gradient at all, as torch does."""
    single, double, none = (
        nn.Parameter(torch.ones(2, dtype=dtype)) for dtype in (torch.float32, torch.float64, torch.float32)
    )
    assert clip_gradient_norm([none], 1.0) == 0
    single.grad, double.grad = torch.full((2,), 3.0), torch.full((2,), 4.0, dtype=torch.float64)
    norm = clip_gradient_norm([single, none, double], 1.0)
    assert norm == pytest.approx(50**0.5)
    assert clip_gradient_norm([single, double], 1.0) == pytest.approx(1.0)


@pytest.mark.parametrize("broken", [math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_limit_of_infinity_measures_and_changes_nothing(broken: float, dtype: torch.dtype) -> None:
    """Not even gradients that are not finite, so that their origin can still be found."""
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=dtype))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, broken]), torch.tensor([4.0, 4.0], dtype=dtype)
    assert not math.isfinite(clip_gradient_norm(parameters, math.inf))
    assert torch.equal(parameters[1].grad, torch.tensor([4.0, 4.0], dtype=dtype))
