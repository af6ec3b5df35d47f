"""A budget of function calls for a training step: what a step costs in Python, as a figure without noise.

The same count on every machine, unlike a time. When a change goes over the budget, `python -m benchmarks.engines
--only flambeau good_loop --tables calls cost` says what it costs; raise the budget only with a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

import flambeau
from benchmarks.clock import Clock
from benchmarks.contenders import flambeau as contender
from benchmarks.contenders import good_loop
from benchmarks.tasks import Work, digits_mlp

STEPS = 200  # a multiple of the logging interval, so that every share of it is counted
OWN_CALLS = 125
"""Of which 57 stand in for the wrappers of torch's optimizer, and some 66 are the engine: 123 in all at present."""


def calls_of(fit: Callable[[Work, str], None], variant: str, folder: Path) -> Clock:
    torch.manual_seed(0)
    task, clock = digits_mlp(), Clock(50, 50 + STEPS, count_calls=True)
    fit(Work(task, task.model(clock), epochs=1, prepared_steps=51 + STEPS, folder=folder), variant)
    return clock


def test_a_step_makes_no_more_function_calls_than_the_loop_written_by_hand(tmp_path: Path) -> None:
    """With everything on that ships on, torch's own functions included."""
    ours = calls_of(contender.fit, "default", tmp_path).calls.total() / STEPS
    by_hand = calls_of(good_loop.fit, "by hand", tmp_path).calls.total() / STEPS
    assert ours <= by_hand


def test_flambeau_itself_makes_few_calls_in_a_step(tmp_path: Path) -> None:
    """Counted in its own files only, so that another release of torch changes nothing."""
    package = str(Path(flambeau.__file__).parent)
    calls = calls_of(contender.fit, "default", tmp_path).calls
    own = sum(count for file, count in calls.items() if file.startswith(package)) / STEPS
    assert 0 < own <= OWN_CALLS
