"""`stop_when`, `milestones`, `time_limit`: what ends a run, or marks a step of it, by scores, samples or time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.fsdp  # once, for all processes that are forked from this one
from hypothesis import given
from hypothesis import strategies as st
from support.processes import together
from support.projects import InProcess
from support.tasks import linear, make_trainer, points
from torch import nn

from flambeau import Callback, Metric, Trainer
from flambeau.callbacks import Milestones, StopWhen, TimeLimit, stop_when
from flambeau.callbacks.scores import Watched
from flambeau.config.sections import FsdpSettings, TrainerSettings
from flambeau.distributed.sharding import prepare_model
from flambeau.errors import UsageError
from flambeau.runtime.world import current_world


class Scripted(Metric):
    """Gives the values it was made with, one an evaluation."""

    def __init__(self, values: list[float], *, higher_is_better: bool) -> None:
        super().__init__()
        self.values, self.higher_is_better = list(values), higher_is_better

    def reset(self) -> None: ...

    def update(self, outputs: Any, targets: Any) -> None: ...

    def compute(self) -> Any:
        return self.values.pop(0)


def scripted(values: list[float], callback: Callback, *others: Callback, mode: str = "max", **options: Any) -> Trainer:
    """A run of one step an epoch, validated at each; its score follows the script."""
    return make_trainer(
        batch_size=20,
        epochs=len(values),
        val_data=points(),
        metrics={"score": Scripted(values, higher_is_better=mode == "max")},
        dry_batch=False,  # it would take the first entry of the script
        callbacks={"callback": callback, **{type(other).__name__: other for other in others}},
        **options,
    )


class Leave(Callback):
    """Preempts after a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, trainer: Trainer) -> None:
        if trainer.state.step == self.at:
            trainer.preempt("a test")


class TestStopWhen:
    @pytest.mark.parametrize(
        ("mode", "options", "values", "last"),
        [
            ("max", {"reaches": 0.9}, [0.5, 0.9, 1.0], 2),
            ("max", {"reaches": 0.9}, [0.5, float("nan"), 0.8], 3),
            ("min", {"reaches": 0.1}, [0.5, 0.2, 0.05, 0.0], 3),
            ("min", {"worse_than_best_by": 2.0}, [1.0, 0.5, 0.9, 1.1, 0.2], 4),
            ("min", {"worse_than_best_by": 2.0}, [1.0, 2.0, 1.9], 3),  # twice is not over twice
            ("max", {"worse_than_best_by": 2.0}, [0.8, 0.5, 0.3, 0.9], 3),
            ("min", {"worse_than_best_by": 9.0}, [1.0, float("nan"), 0.1], 2),
            ("min", {"worse_than_best_by": 2.0}, [-1.0, 5.0, -2.0], 3),  # no factor says anything here
        ],
    )
    def test_a_score_ends_the_run_as_a_finished_one(
        self, mode: str, options: Any, values: list[float], last: int, tmp_path: Path
    ) -> None:
        trainer = scripted(values, StopWhen(**options), mode=mode, run_dir=tmp_path / "run")
        assert trainer.fit().step == last
        assert trainer.run_folder is not None
        assert trainer.run_folder.status.state == "finished"
        assert (trainer.stop_reason is not None) == (last < len(values))

    def test_another_score_than_the_monitored_one_can_decide(self) -> None:
        trainer = scripted([0.1] * 5, StopWhen(score="val/loss", reaches=99.0))
        assert trainer.fit().step == 1
        assert trainer.stop_reason == "val/loss has reached 99"

    def test_samples_end_it_after_the_step_that_completes_them(self) -> None:
        trainer = make_trainer(epochs=9, callbacks=[StopWhen(samples=36)])  # 8, 16, 20, 28, 36
        assert (trainer.fit().step, trainer.state.samples) == (5, 36)

    def test_a_run_that_has_seen_them_takes_no_step_more(self, tmp_path: Path) -> None:
        """If it is resumed, and asked to be longer."""
        options: dict[str, Any] = {"callbacks": [StopWhen(samples=36)], "run_dir": tmp_path / "run"}
        make_trainer(epochs=9, **options).fit()
        assert make_trainer(epochs=10, **options).fit(resume=True).step == 5

    def test_several_processes_stop_after_the_same_step_as_one(self) -> None:
        """At once: what all know needs no agreement."""
        assert together(2, step_of_sample, 17) == [3, 3]

    def test_the_best_score_and_the_end_survive_a_resume(self, tmp_path: Path) -> None:
        """A divergence after the resume is measured by the best score before it."""
        options: dict[str, Any] = {"mode": "min", "run_dir": tmp_path / "run"}
        scripted([0.1, 0.2, 0.2, 0.2], StopWhen(worse_than_best_by=3.0), Leave(2), **options).fit()
        second = scripted([0.2, 0.4, 0.0, 0.0], StopWhen(worse_than_best_by=3.0), **options)
        assert second.fit(resume=True).step == 4
        assert second.stop_reason is not None
        assert "worse than the best, 0.1" in second.stop_reason

    def test_a_file_in_the_run_folder_ends_it_and_is_removed(
        self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stop_when, "LOOK_SECONDS", 0.0)
        parts = next(flambeau.project.root.glob("parts_*.py"))
        parts.write_text(
            parts.read_text()
            + "\ndef touch(trainer):\n"
            + "    if trainer.state.step == 3:\n        (trainer.run_folder.path / 'STOP').touch()\n"
        )
        answer = flambeau(
            "train",
            "tiny",
            "--run-dir",
            "run",
            f"callbacks={{every: {{call: {parts.stem}.touch, steps: 1}}, stop_when: {{file: STOP}}}}",
        )
        assert "stopped after step 3: there is a file STOP in the run folder" in answer.out
        status = json.loads((flambeau.project.root / "run/status.json").read_text())
        assert (status["state"], status["step"]) == ("finished", 3)
        assert not (flambeau.project.root / "run/STOP").exists()

    def test_a_time_budget_finishes_the_run_where_a_time_limit_leaves_it(self, tmp_path: Path) -> None:
        trainer = make_trainer(epochs=3, callbacks=[StopWhen(minutes=1e-9)], run_dir=tmp_path / "run")
        assert trainer.fit().step == 1
        assert (trainer.preemption, trainer.stop_reason) == (None, "the time budget of 1e-09 minutes is used up")

    def test_the_time_before_a_resume_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: clock[0])
        first = StopWhen(minutes=1.0)
        first.on_fit_start(make_trainer())
        clock[0] = 50.0
        second = StopWhen(minutes=1.0)
        second.load_state_dict(first.state_dict())
        second.on_fit_start(make_trainer())
        trainer = make_trainer()
        second.on_step_end(trainer)
        assert trainer.stop_reason is None
        clock[0] = 60.0
        second.on_step_end(trainer)
        assert trainer.stop_reason is not None

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({}, "no condition is given"),
            ({"file": "../STOP"}, "is no name of a file"),
            ({"samples": 5, "score": "val/loss"}, "no condition reads score and mode"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, options: Any, said: str) -> None:
        with pytest.raises(UsageError, match=said):
            StopWhen(**options)

    @pytest.mark.parametrize(
        "name", ["stop_when: {score: val/acuracy, reaches: 1}", "milestones: {score: val/acuracy, marks: [1]}"]
    )
    def test_an_unknown_score_is_refused_before_there_is_a_folder(self, name: str, flambeau: InProcess) -> None:
        answer = flambeau("train", "tiny", f"callbacks={{{name}}}", expect=2)
        assert "did you mean 'val/accuracy'?" in answer.err
        assert not (flambeau.project.root / "runs").exists()

    @given(
        value=st.floats(0.001, 1e3),
        best=st.floats(0.001, 1e3),
        factor=st.floats(1.01, 10),
        mode=st.sampled_from(["min", "max"]),
    )
    def test_a_divergence_is_the_same_for_a_loss_and_for_its_inverse(
        self, value: float, best: float, factor: float, mode: Any
    ) -> None:
        """And no score that is at least as good as the best is one."""
        watched, inverse = Watched("x", mode, "a test"), Watched("x", "min" if mode == "max" else "max", "a test")
        if abs(value / best - factor) > 1e-9 and abs(best / value - factor) > 1e-9:
            assert watched.is_worse_by(factor, value, best) == inverse.is_worse_by(factor, 1 / value, 1 / best)
        assert not (watched.reaches(value, best) and watched.is_worse_by(factor, value, best))


def step_of_sample(samples: int) -> int:
    trainer = make_trainer(epochs=9, callbacks=[StopWhen(samples=samples)], log_every=99)
    return trainer.fit().step


class TestMilestones:
    def test_each_mark_is_told_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        scripted([0.4, 0.95, 0.3, 0.96], Milestones([0.9, 0.5, 0.99])).fit()
        said = [line for line in capsys.readouterr().out.split("\n") if line.startswith("milestone")]
        assert said == [
            "milestone: val/score of 0.5 passed at step 2",
            "milestone: val/score of 0.9 passed at step 2",
        ]

    def test_lower_is_better_where_it_is(self, capsys: pytest.CaptureFixture[str]) -> None:
        scripted([0.4, 0.2], Milestones([0.3]), mode="min").fit()
        assert "of 0.3 passed at step 2" in capsys.readouterr().out

    def test_the_checkpoint_of_a_mark_stays_for_good(self, tmp_path: Path) -> None:
        """Though it is neither among the newest nor the best, and over a resume without the callback."""
        values = [0.5, 0.95, 0.99, 0.4, 0.3, 0.2]
        options: dict[str, Any] = {"keep_last": 1, "every_epochs": 5, "run_dir": tmp_path / "run"}
        trainer = scripted(values, Milestones([0.9], then="save"), **options)
        trainer.fit()
        assert trainer.store is not None
        assert trainer.store.steps() == [2, 3, 6]
        longer = scripted([0.1] * 8, Callback(), **options)
        longer.fit(resume=True)
        assert longer.store is not None
        assert longer.store.steps() == [2, 3, 8]

    def test_it_is_saved_at_once_though_none_is_due(self, tmp_path: Path) -> None:
        options: dict[str, Any] = {"keep_best": 0, "every_epochs": 99, "run_dir": tmp_path / "run"}
        trainer = scripted([0.5, 0.95, 0.4, 0.3], Milestones([0.9], then="save"), **options)
        trainer.fit()
        assert trainer.store is not None
        assert trainer.store.steps() == [2, 4]

    def test_so_does_one_of_a_model_in_pieces(self, tmp_path: Path) -> None:
        """And every process knows of it."""
        assert together(2, steps_kept_in_pieces, tmp_path / "run") == [[1, 6], [1, 6]]

    def test_the_last_mark_can_end_the_run(self) -> None:
        trainer = scripted([0.4, 0.6, 0.95, 1.0], Milestones([0.5, 0.9], then="stop"))
        assert trainer.fit().step == 3
        assert trainer.stop_reason == "all milestones of val/score are passed"

    def test_a_mark_that_is_passed_stays_so_over_a_resume(self, flambeau: InProcess) -> None:
        settings = ["callbacks.milestones={marks: [0.01]}", "callbacks.beacon={}"]
        flambeau("train", "tiny", "--run-dir", "run", *settings, "callbacks.time={name: time_limit, minutes: 60}")
        said = flambeau("resume", "run", "trainer.epochs=5", "scheduler=null", "--force").out
        assert "milestone" not in said

    def test_there_must_be_marks_and_validation_data(self) -> None:
        with pytest.raises(UsageError, match="no marks are given"):
            Milestones([])
        with pytest.raises(UsageError, match="there is no validation data"):
            make_trainer(callbacks=[Milestones([0.5])])


def steps_kept_in_pieces(run_dir: Path) -> list[int]:
    settings = TrainerSettings(fsdp=FsdpSettings(blocks=["Linear"]), steps=6, validate_every_steps=1)
    model = prepare_model(nn.Sequential(linear()), settings, current_world(), torch.device("cpu"))
    trainer = Trainer(
        model,
        points(),
        nn.CrossEntropyLoss(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        val_data=points(),
        settings=settings,
        callbacks=[Milestones([99.0], then="save")],  # of the loss: passed at once
        device="cpu",
        batch_size=8,
        every_steps=1,
        keep_last=1,
        keep_best=0,
        run_dir=run_dir,
    )
    trainer.fit()
    assert trainer.store is not None
    return trainer.store.steps()


class LateOnRank1(TimeLimit):
    """The clock of one process of several runs out."""

    def on_fit_start(self, trainer: Trainer) -> None:
        super().on_fit_start(trainer)
        if trainer.world.rank == 0:
            self._end = float("inf")


def run_out_of_time(run_dir: Path) -> tuple[int, str | None]:
    trainer = make_trainer(steps=500, callbacks=[LateOnRank1(minutes=1e-9)], run_dir=run_dir, log_every=10)
    state = trainer.fit()
    return state.step, trainer.preemption


class TestTimeLimit:
    def test_all_processes_leave_after_the_same_step_when_the_clock_of_one_runs_out(self, tmp_path: Path) -> None:
        """And are to be resumed."""
        one, other = together(2, run_out_of_time, tmp_path / "run")
        assert one == other
        assert one[0] < 500
        assert one[1] == "the time limit of 1e-09 minutes"
        assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "preempted"

    def test_a_job_that_saved_at_it_ends_with_the_status_that_requeues_it(self, flambeau: InProcess) -> None:
        """75, on which a job of Slurm goes on by itself, with the time anew."""
        flambeau("train", "tiny", "--run-dir", "run", "callbacks.time_limit={minutes: 1e-9}", expect=75)
        step = json.loads((flambeau.project.root / "run/status.json").read_text())["step"]
        flambeau("resume", "run", expect=75)
        assert json.loads((flambeau.project.root / "run/status.json").read_text())["step"] == step + 1
