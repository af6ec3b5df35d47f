"""Schedules: pure functions of the optimizer step that agree with torch's schedulers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from flambeau.errors import UsageError
from flambeau.optim import (
    WSD,
    Constant,
    Cosine,
    CosineRestarts,
    Cycles,
    Exponential,
    InverseSqrt,
    Linear,
    MultiStep,
    OneCycle,
    Piecewise,
    Polynomial,
    Schedule,
)

SHAPES: dict[str, Callable[..., Schedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "multistep": MultiStep,
    "one_cycle": OneCycle,
    "exponential": Exponential,
    "polynomial": Polynomial,
    "inverse_sqrt": partial(InverseSqrt, timescale=100),
    "wsd": WSD,
    "piecewise": partial(Piecewise, steps_per_epoch=7, factors=[[0, 1.0], [3, 0.3], [5, 0.1]]),
    "cosine_restarts": partial(CosineRestarts, cycle_part=0.1, multiplier=1.7, peak_decay=0.8),
    "cycles": partial(Cycles, cycles=3, shape="linear", peak_decay=0.5, final_factor=0.1),
}
WARMUPS = ["linear", "constant", "exponential", "cosine"]


def torchs_factors(make: Callable[[Any], Any], steps: int) -> list[float]:
    """The learning rates that a torch scheduler sets, for a base rate of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of calling the scheduler without the optimizer
        for step in range(steps):
            if step > 0:
                scheduler.step()
            factors.append(optimizer.param_groups[0]["lr"])
    return factors


TORCHS: dict[str, tuple[Callable[[int], Schedule], Callable[[int], Callable[[Any], Any]]]] = {
    "linear": (
        lambda n: Linear(total_steps=n, final_factor=0.1),
        lambda n: lambda optimizer: lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=n),
    ),
    "cosine": (
        lambda n: Cosine(total_steps=n, final_factor=0.05),
        lambda n: lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, n, eta_min=0.05),
    ),
    "multistep": (
        lambda n: MultiStep(total_steps=n, milestones=[3, 7, 7], gamma=0.5),
        lambda n: lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [3, 7, 7], 0.5),
    ),
    "exponential": (
        lambda n: Exponential(total_steps=n, final_factor=0.5**n),
        lambda n: lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.5),
    ),
    "polynomial": (
        lambda n: Polynomial(total_steps=n, power=0.9),
        lambda n: lambda optimizer: lr_scheduler.PolynomialLR(optimizer, n, power=0.9),
    ),
    "cosine_restarts": (
        lambda n: CosineRestarts(total_steps=n, cycle_steps=3, multiplier=2, final_factor=0.1),
        lambda n: lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3, 2, eta_min=0.1),
    ),
    "cycles": (
        lambda n: Cycles(total_steps=n, cycles=4),
        lambda n: lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, n // 4),
    ),
    "one_cycle": (
        lambda n: OneCycle(total_steps=n),
        lambda n: lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=n),
    ),
    "one_cycle linear": (
        lambda n: OneCycle(total_steps=n, anneal="linear", rise=0.5),
        lambda n: (
            lambda optimizer: lr_scheduler.OneCycleLR(
                optimizer, 1.0, total_steps=n, pct_start=0.5, anneal_strategy="linear"
            )
        ),
    ),
    "linear warm-up": (
        lambda n: Cosine(total_steps=n + 4, warmup_steps=4, warmup_factor=0.1),
        lambda n: (
            lambda optimizer: lr_scheduler.SequentialLR(
                optimizer,
                [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4), lr_scheduler.CosineAnnealingLR(optimizer, n)],
                [4],
            )
        ),
    ),
}


@pytest.mark.parametrize("name", TORCHS)
def test_factors_are_those_of_torchs_scheduler(name: str) -> None:
    """At every step of the run."""
    ours, theirs = TORCHS[name]
    steps = 20
    schedule = ours(steps)
    expected = torchs_factors(theirs(steps), steps)
    assert [schedule(step) for step in range(steps)] == pytest.approx(expected, abs=1e-12)


@given(
    shape=st.sampled_from(sorted(SHAPES)),
    total_steps=st.integers(0, 10**6),
    warmup_steps=st.integers(0, 10**6),
    warmup=st.sampled_from(WARMUPS),
    step=st.integers(0, 2 * 10**6),
)
def test_a_factor_is_a_finite_number_between_0_and_1(
    shape: str, total_steps: int, warmup_steps: int, warmup: Any, step: int
) -> None:
    """For any lengths, runs shorter than their warm-up and steps beyond the end included."""
    schedule = SHAPES[shape](total_steps=total_steps, warmup_steps=warmup_steps, warmup=warmup)
    factor = schedule(step)
    assert type(factor) is float and math.isfinite(factor)
    assert -1e-12 <= factor <= 1 + 1e-12


@given(st.sampled_from(sorted(SHAPES)), st.lists(st.integers(0, 120), min_size=1))
def test_a_factor_depends_on_the_step_alone(shape: str, order: list[int]) -> None:
    """Not on which steps were asked for before: a resumed run has the rate of the uninterrupted one."""
    schedule = SHAPES[shape](total_steps=100, warmup_steps=10)
    fresh = [SHAPES[shape](total_steps=100, warmup_steps=10)(step) for step in order]
    assert [schedule(step) for step in order] == fresh


@pytest.mark.parametrize("shape", sorted(SHAPES.keys() - {"one_cycle"}))
@pytest.mark.parametrize("warmup", WARMUPS)
def test_warm_up_rises_from_its_factor_to_the_full_rate(shape: str, warmup: Any) -> None:
    """Step 0 has `warmup_factor`, the first step after warm-up has 1, and in between it never falls."""
    schedule = SHAPES[shape](total_steps=100, warmup_steps=10, warmup=warmup, warmup_factor=0.1)
    rise = [schedule(step) for step in range(11)]
    assert rise[0] == pytest.approx(0.1)
    assert rise[10] == pytest.approx(1.0)
    assert rise == sorted(rise)
    if warmup == "constant":
        assert rise[9] == pytest.approx(0.1)


def test_the_end_of_the_run_is_the_end_of_the_shape() -> None:
    """The final factor is reached at `total_steps`, and kept."""
    for make in (Linear, Cosine, Exponential, Polynomial, WSD, Cycles):
        schedule = make(total_steps=50, final_factor=0.2)
        assert schedule(50) == pytest.approx(0.2)
        assert schedule(1000) == pytest.approx(0.2)
        assert schedule(49) > 0.2


def test_milestones_are_steps_or_parts_of_the_run() -> None:
    """Whole numbers count steps, warm-up included; numbers between 0 and 1 are parts of `total_steps`."""
    steps = MultiStep(total_steps=100, milestones=[30, 60], warmup_steps=10)
    parts = MultiStep(total_steps=100, milestones=[0.3, 0.6], warmup_steps=10)
    for schedule in (steps, parts):
        assert [schedule(step) for step in (29, 30, 59, 60)] == pytest.approx([1.0, 0.1, 0.1, 0.01])


def test_lengths_are_given_in_steps_or_epochs() -> None:
    """An epoch has the steps that the engine counts; half epochs too."""
    pairs = [
        (Cosine(total_steps=100, warmup_steps=15), Cosine(total_steps=100, warmup_epochs=1.5, steps_per_epoch=10)),
        (
            MultiStep(total_steps=100, milestones=[30, 60]),
            MultiStep(total_steps=100, milestone_epochs=[3, 6], steps_per_epoch=10),
        ),
        (WSD(total_steps=100, decay_steps=30), WSD(total_steps=100, decay_epochs=3, steps_per_epoch=10)),
        (WSD(total_steps=100, decay_steps=30), WSD(total_steps=100, decay_part=0.3)),
        (
            CosineRestarts(total_steps=100, cycle_steps=25),
            CosineRestarts(total_steps=100, cycle_epochs=2.5, steps_per_epoch=10),
        ),
        (CosineRestarts(total_steps=100, cycle_steps=25), CosineRestarts(total_steps=100, cycle_part=0.25)),
    ]
    for one, other in pairs:
        assert [one(step) for step in range(101)] == [other(step) for step in range(101)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(total_steps=9, warmup_epochs=1), "scheduler.warmup is given in epochs, and the length"),
        (
            lambda: Cosine(total_steps=9, warmup_epochs=1, warmup_steps=2, steps_per_epoch=3),
            "scheduler.warmup is given in steps and in epochs",
        ),
        (lambda: CosineRestarts(total_steps=9), "needs the length of its first cycle"),
        (lambda: WSD(total_steps=9, decay_steps=3, decay_part=0.1), "scheduler.decay is given in steps and in part"),
        (lambda: WSD(total_steps=90, warmup_steps=70, decay_steps=30), "30 steps does not fit into the 20 steps"),
        (lambda: InverseSqrt(total_steps=9), "takes its time scale from the warm-up"),
        (lambda: MultiStep(total_steps=9, milestones=[3], milestone_epochs=[1]), "both milestones"),
    ],
)
def test_a_length_that_cannot_be_known_is_an_error(make: Callable[[], Schedule], message: str) -> None:
    """Of two units, of none, in epochs of unknown length, or longer than what it is a part of."""
    with pytest.raises(UsageError, match=message):
        make()


def test_inverse_sqrt_is_the_papers() -> None:
    """min(step^-0.5, step * warmup^-1.5), scaled so that its peak is 1 (Vaswani et al., 2017, eq. 3)."""
    schedule = InverseSqrt(total_steps=1000, warmup_steps=50, warmup_factor=0.0)
    expected = [min(max(step, 1e-9) ** -0.5, step * 50**-1.5) * 50**0.5 for step in range(1000)]
    assert [schedule(step) for step in range(1000)] == pytest.approx(expected)


def test_wsd_stays_at_the_full_rate_until_its_decay() -> None:
    """Warm-up, stable, decay: by hand."""
    schedule = WSD(total_steps=20, warmup_steps=4, decay_steps=8, warmup_factor=0.0, final_factor=0.2)
    assert [schedule(step) for step in (0, 2, 4, 11, 12)] == pytest.approx([0, 0.5, 1, 1, 1])
    assert [schedule(step) for step in (16, 20, 30)] == pytest.approx([0.6, 0.2, 0.2])
    slow = {decay: WSD(total_steps=20, decay_steps=4, decay=decay)(17) for decay in ("linear", "cosine", "sqrt")}
    assert slow == pytest.approx({"linear": 0.75, "cosine": (1 + 2**-0.5) / 2, "sqrt": 0.5})


def test_the_peaks_of_cycles_fall() -> None:
    """Each begins at its share of the one before, and ends at the final factor."""
    schedule = Cycles(total_steps=40, cycles=4, shape="linear", peak_decay=0.5)
    assert [schedule(step) for step in (0, 10, 20, 30)] == pytest.approx([1, 0.5, 0.25, 0.125])
    assert [schedule(step) for step in (5, 15, 25, 35)] == pytest.approx([0.5, 0.25, 0.125, 0.0625])
    assert schedule(40) == 0
    assert [schedule.cycle(step) for step in (0, 9, 10, 29, 39, 40, 99)] == [0, 0, 1, 2, 3, 3, 3]


def test_piecewise_holds_the_factor_of_the_epoch() -> None:
    """From the epoch's first step on, warm-up included."""
    schedule = Piecewise([[0, 1.0], [2, 0.1], [3, 0.01]], total_steps=50, steps_per_epoch=10, warmup_steps=5)
    assert [schedule(step) for step in (5, 19, 20, 29, 30, 49)] == [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    late = Piecewise([[2, 0.1]], total_steps=50, steps_per_epoch=10)
    assert [late(step) for step in (0, 19, 20)] == [1.0, 1.0, 0.1]


@pytest.mark.parametrize(
    "factors",
    [
        [[0.02, 0], [0.1, 30]],
        [[1, 0], [0.1, 30]],
        [[1, 30], [0, 60]],
        [[1, 0], [0, 1]],
        [[0, 1.0], [30, 0.1], [30, 0.01]],
        [[0, 1.0, 2]],
        [[-1, 0.5]],
        [[0, 2.0]],
    ],
)
def test_pairs_in_the_wrong_order_are_an_error(factors: Any) -> None:
    """Read the wrong way round, `[factor, epoch]` would be one rate for the whole run."""
    with pytest.raises(UsageError, match=r"scheduler\.factors: .*"):
        Piecewise(factors, total_steps=1000, steps_per_epoch=10)


def test_milestones_that_mean_nothing_are_refused() -> None:
    """A half step or a negative one."""
    for wrong in (2.5, -1, -0.5):
        with pytest.raises(UsageError, match=str(wrong)):
            MultiStep(total_steps=100, milestones=[wrong])


def test_an_exponential_warm_up_from_nothing_is_refused() -> None:
    """It would stay at 0."""
    with pytest.raises(UsageError, match="exponential"):
        Constant(total_steps=10, warmup_steps=5, warmup="exponential", warmup_factor=0.0)
