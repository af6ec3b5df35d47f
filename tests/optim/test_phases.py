"""Phases: learning rate and weight decay together, with lengths that add up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flambeau.errors import UsageError
from flambeau.optim import Phase, Phases


def phases(*given: dict[str, Any], total_steps: int = 100, steps_per_epoch: int | None = 10) -> Phases:
    return Phases([Phase(**phase) for phase in given], total_steps=total_steps, steps_per_epoch=steps_per_epoch)


def test_each_phase_leads_from_its_beginning_to_its_end() -> None:
    """By hand: a rise over an epoch, a plateau of 40 steps, and a fall over the half of the run."""
    schedule = phases(
        {"epochs": 1, "lr_factor": [0.0, 1.0]},
        {"steps": 40},
        {"part": 0.5, "lr_factor": [1.0, 0.01], "shape": "exponential"},
    )
    assert [schedule(step) for step in (0, 5, 10, 49, 50)] == pytest.approx([0, 0.5, 1, 1, 1])
    assert [schedule(step) for step in (75, 100, 1000)] == pytest.approx([0.1, 0.01, 0.01])


def test_one_number_is_the_end_of_a_phase_and_the_next_begins_there() -> None:
    """Without a jump, unless a pair asks for one; `keep` holds the number throughout."""
    schedule = phases(
        {"steps": 10, "lr_factor": 0.5},
        {"steps": 10, "lr_factor": 0.1, "shape": "cosine"},
        {"steps": 10, "lr_factor": 0.7, "shape": "keep"},
        {"lr_factor": [0.3, 0.0]},
    )
    assert [schedule(step) for step in (0, 5, 10)] == pytest.approx([1.0, 0.75, 0.5])
    assert [schedule(step) for step in (15, 20, 25, 29)] == pytest.approx([0.3, 0.7, 0.7, 0.7])
    assert [schedule(step) for step in (30, 65, 100)] == pytest.approx([0.3, 0.15, 0.0])


def test_weight_decay_has_its_own_course() -> None:
    """In the same phases; where none speaks of it, it is left alone."""
    schedule = phases({"epochs": 5, "lr_factor": [1, 0]}, {"weight_decay_factor": [1, 11]})
    assert [schedule.weight_decay_factor(step) for step in (0, 49, 50, 75, 100)] == pytest.approx([1, 1, 1, 6, 11])
    assert schedule(75) == 0
    assert phases({"lr_factor": [1, 0]}).weight_decay_factor(3) is None


@given(
    parts=st.lists(st.integers(1, 10), min_size=1, max_size=6),
    total=st.integers(1, 10**5),
    unknown=st.booleans(),
    step=st.integers(0, 2 * 10**5),
)
def test_phases_cover_the_run(parts: list[int], total: int, unknown: bool, step: int) -> None:
    """Parts that add up to one, rounded or not, with and without an open one: a factor within the ends for any step."""
    given: list[dict[str, Any]] = [{"part": part / sum(parts), "lr_factor": [1.0, 0.5]} for part in parts]
    if unknown:
        given[-1].pop("part")
    if unknown and len(parts) > 1 and sum(parts[:-1]) / sum(parts) * total >= total:
        return
    assert 0.5 <= phases(*given, total_steps=total)(step) <= 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"epochs": 3}, {"epochs": 4}], "the phases take 70 steps, and the run has 100"),
        ([{"epochs": 13}], "the phases take 130 steps, and the run has 100"),
        ([{"epochs": 10}, {}], "nothing is left for phase 1"),
        ([{"epochs": 1}, {}, {}], r"2 phases have no length \(numbers 1, 2\)"),
        ([{"epochs": 1, "steps": 10}, {}], "phases.0 is given in steps and in epochs"),
        ([{"lr_factor": [0, 1], "shape": "exponential"}], "cannot touch 0"),
        ([{"lr_factor": [0, 1], "shape": "keep"}], "`keep` holds one number"),
        ([], "there is no phase"),
    ],
)
def test_phases_that_do_not_fit_are_an_error(given: list[dict[str, Any]], message: str) -> None:
    """With the numbers that do not add up."""
    with pytest.raises(UsageError, match=message):
        phases(*given)


def test_epochs_of_unknown_length_are_an_error() -> None:
    """An iterable data set has none."""
    with pytest.raises(UsageError, match="the length of the training data is not known"):
        phases({"epochs": 3}, {}, steps_per_epoch=None)
