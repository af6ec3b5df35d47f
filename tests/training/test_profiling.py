"""A profile: a trace and a table that can be read, of the steps that were asked for, of every process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.processes import together
from support.tasks import make_trainer

from flambeau import Callback, Trainer
from flambeau.config.sections import ProfileSettings
from flambeau.runtime.world import current_world


def steps_in(trace: Path) -> list[int]:
    """The steps of the process, from 1, that a trace holds."""
    names = {str(event.get("name")) for event in json.loads(trace.read_text())["traceEvents"]}
    return sorted(1 + int(name.partition("#")[2]) for name in names if name.startswith("ProfilerStep#"))


def test_the_steps_that_were_asked_for_are_recorded(tmp_path: Path) -> None:
    make_trainer(epochs=4, profile=ProfileSettings(start_step=5, steps=3), run_dir=tmp_path / "run").fit()
    assert steps_in(tmp_path / "run/profile/trace.json") == [5, 6, 7]


def test_the_table_names_operators_the_dearest_first(tmp_path: Path) -> None:
    make_trainer(epochs=4, profile=ProfileSettings(start_step=2, steps=3), run_dir=tmp_path / "run").fit()
    table = (tmp_path / "run/profile/operators.txt").read_text()
    assert "Self CPU" in table and "aten::addmm" in table and "# of Calls" in table
    assert len(table.splitlines()) <= 40


@pytest.mark.parametrize(("steps", "written"), [(2, False), (6, True)])
def test_a_run_that_ends_too_early_says_that_there_is_no_profile(
    steps: int, written: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that ends while it is recorded has what there is."""
    make_trainer(steps=steps, profile=ProfileSettings(start_step=5, steps=9), run_dir=tmp_path / "run").fit()
    assert (tmp_path / "run/profile/trace.json").exists() is written
    assert ("no profile: the run ended before its step 5" in capsys.readouterr().err) is not written


def test_an_error_in_a_recorded_step_is_not_hidden(tmp_path: Path) -> None:
    class Fail(Callback):
        def on_step_end(self, trainer: Trainer) -> None:
            if trainer.state.step == 3:
                raise ArithmeticError("mine")

    trainer = make_trainer(profile=ProfileSettings(start_step=2), callbacks=[Fail()], run_dir=tmp_path / "run")
    with pytest.raises(ArithmeticError, match="mine"):
        trainer.fit()


def profiled(folder: str) -> list[Any]:
    make_trainer(epochs=4, profile=ProfileSettings(start_step=4, steps=2), run_dir=folder).fit()
    return [current_world().rank]


@pytest.mark.slow
def test_every_process_writes_its_own(tmp_path: Path) -> None:
    assert together(2, profiled, str(tmp_path / "run")) == [[0], [1]]
    found = sorted(path.name for path in (tmp_path / "run/profile").iterdir())
    assert found == ["operators-rank-1.txt", "operators.txt", "trace-rank-1.json", "trace.json"]
    assert steps_in(tmp_path / "run/profile/trace-rank-1.json") == [4, 5]
