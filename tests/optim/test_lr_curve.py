"""What a sweep of learning rates suggests, on curves made by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flambeau.optim.lr_curve import LrCurve, Runaway

RATES = [10 ** (-6 + place / 10) for place in range(61)]


def by_hand() -> LrCurve:
    """Flat at 2 up to 1e-4, straight down to 0 at 1e-1, straight up again."""
    losses = [2.0] * 20 + [2.0 - 2.0 * place / 30 for place in range(30)] + [0.4 * place for place in range(11)]
    return LrCurve(RATES, losses)


def test_the_valley_is_the_middle_of_the_fall() -> None:
    """Between 1e-4 and 1e-1, by the logarithm: 10 ** -2.5."""
    assert math.log10(by_hand().valley or 0) == pytest.approx(-2.5, abs=0.15)


def test_the_steepest_rate_is_where_the_loss_falls_fastest() -> None:
    """A slow fall from 1e-5 on, and a fast one around 1e-2."""
    losses = [
        2 - 0.2 * max(math.log10(rate) + 5, 0) - 1 / (1 + math.exp(-4 * (math.log10(rate) + 2))) for rate in RATES
    ]
    assert LrCurve(RATES, losses).steepest == pytest.approx(1e-2, rel=0.3)


def test_the_lowest_rate_is_that_of_the_smallest_loss() -> None:
    """Smoothed: one lucky batch is not the minimum."""
    curve = by_hand()
    assert math.log10(curve.lowest or 0) == pytest.approx(-1, abs=0.3)
    lucky = list(curve.losses)
    lucky[5] = -0.5
    assert LrCurve(RATES, lucky).lowest == curve.lowest


def test_a_loss_that_never_falls_suggests_nothing() -> None:
    """Rising or flat."""
    for losses in ([1.0] * 61, [1 + place / 10 for place in range(61)]):
        curve = LrCurve(RATES, losses)
        assert curve.valley is None
        assert curve.steepest is None


@given(st.lists(st.floats(-10, 10), max_size=61))
def test_a_suggestion_is_one_of_the_rates(losses: list[float]) -> None:
    """Whatever the losses, and below the rate of the lowest."""
    curve = LrCurve(RATES[: len(losses)], losses)
    assert len(curve.smoothed) == len(losses)
    for rate in (curve.valley, curve.steepest, curve.lowest):
        assert rate is None or rate in RATES


@given(scale=st.floats(1e-3, 1e3), noise=st.lists(st.floats(-0.3, 0.3), min_size=30, max_size=30))
def test_a_runaway_is_told_at_any_scale_and_noise_is_none(scale: float, noise: list[float]) -> None:
    """Ten times the loss is one; a third more or less is not; NaN always is."""
    ran_away = Runaway()
    assert not any(ran_away(scale * (1 + deviation)) for deviation in noise)
    assert any(ran_away(scale * 10) for _ in range(10))
    assert Runaway()(math.nan)
