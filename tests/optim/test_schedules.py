"""Schedules: pure functions of the optimizer step that agree with torch's schedulers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from flambeau.errors import UsageError
from flambeau.optim import Constant, Cosine, Linear, MultiStep, OneCycle, Schedule

SHAPES: dict[str, Callable[..., Schedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "multistep": MultiStep,
    "one_cycle": OneCycle,
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


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine", "multistep"])
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
    for schedule in (Linear(total_steps=50, final_factor=0.2), Cosine(total_steps=50, final_factor=0.2)):
        assert schedule(50) == pytest.approx(0.2)
        assert schedule(1000) == pytest.approx(0.2)
        assert schedule(49) > 0.2


def test_milestones_are_steps_or_parts_of_the_run() -> None:
    """Whole numbers count steps, warm-up included; numbers between 0 and 1 are parts of `total_steps`."""
    steps = MultiStep(total_steps=100, milestones=[30, 60], warmup_steps=10)
    parts = MultiStep(total_steps=100, milestones=[0.3, 0.6], warmup_steps=10)
    for schedule in (steps, parts):
        assert [schedule(step) for step in (29, 30, 59, 60)] == pytest.approx([1.0, 0.1, 0.1, 0.01])


def test_milestones_that_mean_nothing_are_refused() -> None:
    """A half step or a negative one."""
    for wrong in (2.5, -1, -0.5):
        with pytest.raises(UsageError, match=str(wrong)):
            MultiStep(total_steps=100, milestones=[wrong])


def test_an_exponential_warm_up_from_nothing_is_refused() -> None:
    """It would stay at 0."""
    with pytest.raises(UsageError, match="exponential"):
        Constant(total_steps=10, warmup_steps=5, warmup="exponential", warmup_factor=0.0)
