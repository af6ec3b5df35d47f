"""The course of a run: early stopping, what is best, callbacks, debug switches, profiling, options."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fates import Crew
from support.tasks import linear, make_trainer, points, weights
from torch.utils.data import IterableDataset

from flambeau import Callback, Metric, Trainer
from flambeau.callbacks import TimeLimit
from flambeau.config.sections import EarlyStoppingSettings, ProfileSettings
from flambeau.errors import CheckpointError, UsageError
from flambeau.metrics import Accuracy
from flambeau.training.state import TrainState


class Scripted(Metric):
    """Gives the values it was made with, one an evaluation."""

    def __init__(self, values: list[float], *, higher_is_better: bool | None = True) -> None:
        super().__init__()
        self.values, self.higher_is_better = list(values), higher_is_better

    def reset(self) -> None: ...

    def update(self, outputs: Any, targets: Any) -> None: ...

    def compute(self) -> Any:
        return self.values.pop(0)


def scripted(
    values: list[float], *, patience: int, mode: str = "max", min_delta: float = 0.0, **options: Any
) -> Trainer:
    """A run of one step an epoch, validated at each; its score follows the script."""
    return make_trainer(
        batch_size=20,
        epochs=options.pop("epochs", 20),
        val_data=points(),
        metrics={"score": Scripted(values + [math.nan] * 20, higher_is_better=mode == "max")},
        early_stopping=EarlyStoppingSettings(patience=patience, min_delta=min_delta),
        dry_batch=False,  # it would take the first entry of the script
        **options,
    )


class TestEarlyStopping:
    @pytest.mark.parametrize(
        ("mode", "values", "last", "best"),
        [
            ("max", [0.1, 0.3, 0.2, 0.3, 0.9], 4, 2),  # equal is no improvement
            ("min", [0.9, 0.3, 0.4, 0.3, 0.1], 4, 2),
            ("max", [0.1, 0.2, 0.1, 0.3, 0.2, 0.2], 6, 4),  # an improvement begins the count anew
            ("min", [0.5, 0.6, 0.7], 3, 1),
            ("max", [0.5, math.nan, math.nan], 3, 1),  # not a number is no improvement
            ("max", [math.nan, math.nan, 0.1], 2, None),
        ],
    )
    def test_it_stops_after_patience_validations_without_improvement(
        self, mode: str, values: list[float], last: int, best: int | None
    ) -> None:
        trainer = scripted(values, patience=2, mode=mode)
        state = trainer.fit()
        assert (state.step, state.best_step) == (last, best)
        assert trainer.stop_reason == "no improvement of val/score in 2 validations"
        assert trainer.preemption is None

    def test_a_gain_up_to_min_delta_is_none(self) -> None:
        assert scripted([0.5, 0.55, 0.6, 0.65], patience=2, min_delta=0.1).fit().step == 3
        assert scripted([0.5, 0.65, 0.7, 0.72], patience=2, min_delta=0.1).fit().step == 4

    def test_without_it_the_run_goes_to_its_end(self) -> None:
        trainer = make_trainer(batch_size=20, epochs=5, val_data=points(), metrics={"score": Scripted([0.5] * 6)})
        assert trainer.fit().step == 5

    def test_best_score_and_patience_survive_a_resume(self, tmp_path: Path) -> None:
        """A first validation after the resume must not win by being the first."""

        class Leave(Callback):
            def on_epoch_end(self, trainer: Trainer) -> None:
                if trainer.state.step == 3:
                    trainer.preempt("a test")

        scripted([0.5, 0.9, 0.3], patience=3, callbacks=[Leave()], run_dir=tmp_path / "run").fit()
        resumed = scripted([0.6, 0.7, 0.8], patience=3, run_dir=tmp_path / "run")
        state = resumed.fit(resume=True)
        assert (state.step, state.best_score, state.best_step) == (5, 0.9, 2)
        assert resumed.store is not None
        best = resumed.store.best()
        assert best is not None
        assert (best.step, best.score) == (2, 0.9)
        assert (tmp_path / "run/checkpoints/best").resolve().name == "step-00000002"
        assert resumed.run_folder is not None
        assert resumed.run_folder.status.best == {"metric": "val/score", "value": 0.9, "step": 2}

    def test_a_run_that_was_stopped_early_stays_stopped_after_a_kill_at_its_end(self, tmp_path: Path) -> None:
        """Its last checkpoint is written before its end is told."""
        scripted([0.9, 0.1, 0.1], patience=2, run_dir=tmp_path / "run").fit()
        resumed = scripted([1.0], patience=2, run_dir=tmp_path / "run")
        assert resumed.fit(resume=True).step == 3

    def test_a_stop_by_a_callback_survives_a_kill_at_its_end_too(self, tmp_path: Path) -> None:
        class Stop(Callback):
            def on_step_end(self, trainer: Trainer) -> None:
                if trainer.state.step == 2:
                    trainer.stop("enough")

        options: dict[str, Any] = {"epochs": 3, "run_dir": tmp_path / "run", "callbacks": {"stop": Stop()}}
        trainer = make_trainer(**options)
        assert trainer.fit().step == 2
        assert trainer.stop_reason == "enough"
        assert trainer.run_folder is not None
        assert trainer.run_folder.status.state == "finished"
        assert make_trainer(**options).fit(resume=True).step == 2


class TestMonitor:
    def make(self, **options: Any) -> Trainer:
        metrics = {"accuracy": Accuracy(), "free": Scripted([], higher_is_better=None)}
        return make_trainer(val_data=points(), metrics=metrics, **options)

    def test_it_is_the_first_metric_that_knows_its_direction_else_the_loss(self) -> None:
        assert (self.make().monitor, self.make().mode) == ("val/accuracy", "max")
        assert (make_trainer().monitor, make_trainer().mode) == ("val/loss", "min")

    @pytest.mark.parametrize("name", ["loss", "val/loss"])
    def test_it_may_be_named_with_or_without_its_split(self, name: str) -> None:
        assert (self.make(monitor=name).monitor, self.make(monitor=name).mode) == ("val/loss", "min")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"monitor": "val/acuracy"}, "did you mean 'val/accuracy'?"),
            ({"monitor": "val/free"}, "set trainer.monitor_mode to min or max"),
            ({"monitor": "val/accuracy", "monitor_mode": "min"}, "the worst checkpoint would be kept as the best"),
            ({"monitor": "val/loss", "monitor_mode": "max"}, "the worst checkpoint would be kept as the best"),
            ({"monitor": "val/ema/loss"}, "set trainer.ema"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, options: Any, message: str) -> None:
        with pytest.raises(UsageError) as caught:
            self.make(**options)
        assert message in str(caught.value)

    def test_a_direction_that_a_metric_does_not_know_can_be_given(self) -> None:
        assert self.make(monitor="free", monitor_mode="min").mode == "min"

    def test_a_value_that_a_metric_turns_out_not_to_give_is_refused_with_those_that_it_gives(self) -> None:
        trainer = make_trainer(val_data=points(), metrics={"accuracy": Accuracy()}, monitor="val/accuracy/top")
        with pytest.raises(UsageError, match="validation gives val/loss, val/accuracy"):
            trainer.fit()


class Diary(Callback):
    """Writes down what happens to it."""

    def __init__(self) -> None:
        self.entries: list[str] = []

    def note(self, what: str, trainer: Trainer) -> None:
        self.entries.append(f"{what} {trainer.state.step}")

    def on_setup(self, trainer: Trainer) -> None:
        self.note("setup", trainer)

    def on_fit_start(self, trainer: Trainer) -> None:
        self.note("fit_start", trainer)

    def on_epoch_start(self, trainer: Trainer) -> None:
        self.note("epoch_start", trainer)

    def on_step_end(self, trainer: Trainer) -> None:
        self.note("step_end", trainer)

    def on_log(self, trainer: Trainer, record: Mapping[str, float]) -> None:
        assert "train/loss" in record
        self.note("log", trainer)

    def on_validation_start(self, trainer: Trainer) -> None:
        self.note("validation_start", trainer)

    def on_validation_end(self, trainer: Trainer, scores: Mapping[str, float]) -> None:
        assert "val/loss" in scores
        self.note("validation_end", trainer)

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.note("epoch_end", trainer)

    def on_checkpoint(self, trainer: Trainer) -> None:
        self.note("checkpoint", trainer)

    def on_fit_end(self, trainer: Trainer) -> None:
        self.note("fit_end", trainer)

    def on_error(self, trainer: Trainer, error: BaseException) -> None:
        self.note(f"error {error}", trainer)

    def on_exit(self, trainer: Trainer, outcome: str) -> None:
        if trainer.run_folder is not None:
            assert trainer.run_folder.status.state == outcome
        self.note(outcome, trainer)


def run_that_fails_on_rank_1(run_dir: Path) -> None:
    class Fail(Callback):
        def on_step_end(self, trainer: Trainer) -> None:
            if trainer.world.rank == 1:
                raise ArithmeticError("mine")

        def on_exit(self, trainer: Trainer, outcome: str) -> None:
            print(outcome, flush=True)

    make_trainer(callbacks=[Fail()], dry_batch=False, run_dir=run_dir).fit()


class TestCallbacks:
    def test_hooks_come_in_the_order_of_the_documentation(self, tmp_path: Path) -> None:
        diary = Diary()
        make_trainer(
            batch_size=10, epochs=2, log_every=3, val_data=points(), callbacks=[diary], run_dir=tmp_path / "run"
        ).fit()
        assert diary.entries == [
            "setup 0",
            "fit_start 0",
            "epoch_start 0",
            "step_end 1",
            "validation_start 2",
            "validation_end 2",
            "step_end 2",
            "epoch_end 2",
            "checkpoint 2",
            "epoch_start 2",
            "log 3",
            "step_end 3",
            "log 4",
            "validation_start 4",
            "validation_end 4",
            "step_end 4",
            "epoch_end 4",
            "checkpoint 4",
            "fit_end 4",
            "finished 4",
        ]

    def test_a_resume_at_the_end_of_an_epoch_starts_the_next_one_once(self, tmp_path: Path) -> None:
        class Leave(Diary):
            def on_epoch_end(self, trainer: Trainer) -> None:
                super().on_epoch_end(trainer)
                if trainer.state.step == 3:
                    trainer.preempt("a test")

        before, after = Leave(), Diary()
        make_trainer(epochs=2, callbacks={"diary": before}, run_dir=tmp_path / "run").fit()
        make_trainer(epochs=2, callbacks={"diary": after}, run_dir=tmp_path / "run").fit(resume=True)
        starts = [entry for entry in before.entries + after.entries if entry.startswith("epoch_start")]
        assert starts == ["epoch_start 0", "epoch_start 3"]
        assert (before.entries[-1], after.entries[-1]) == ("preempted 3", "finished 6")

    def test_an_error_is_shown_to_them_and_goes_on_to_the_caller(self) -> None:
        class Fail(Callback):
            def on_step_end(self, trainer: Trainer) -> None:
                raise ArithmeticError("mine")

        diary = Diary()
        with pytest.raises(ArithmeticError, match="mine"):
            make_trainer(callbacks=[diary, Fail()]).fit()
        assert diary.entries[-2:] == ["error mine 1", "failed 1"]

    def test_they_run_in_the_order_in_which_they_are_given(self) -> None:
        order: list[str] = []

        class First(Callback):
            def on_fit_start(self, trainer: Trainer) -> None:
                order.append(type(self).__name__)

        class Second(First): ...

        make_trainer(callbacks={"b": Second(), "a": First()}, epochs=0).fit()
        assert order == ["Second", "First"]

    def test_every_process_calls_the_last_hook_also_of_a_run_that_another_one_failed(self, tmp_path: Path) -> None:
        """Of those that only lose their partner too."""
        crew = Crew(tmp_path, 2, run_that_fails_on_rank_1, tmp_path / "run")
        assert ["failed" in fate.output for fate in crew.fates()] == [True, True]

    def test_a_trainer_s_own_methods_are_hooks_too(self) -> None:
        """Overridden with super(): the whole run, each step, each validation and each batch of it."""
        seen: list[str] = []

        class Own(Trainer):
            def fit(self, **options: Any) -> TrainState:
                seen.append("before all")
                state = super().fit(**options)
                seen.append("after all")
                return state

            def update(self, batch: Any) -> None:
                super().update(batch)
                seen.append(f"step {self.state.step + 1}")

            def validate(self) -> dict[str, float]:
                seen.append("before validation")
                scores = super().validate()
                seen.append(f"after validation: {', '.join(scores)}")
                return scores

            def evaluation_step(self, model: Any, batch: Any) -> Any:
                seen.append(f"validation batch {batch.number}")
                return super().evaluation_step(model, batch)

        make_trainer(kind=Own, val_data=points(), eval_batch_size=10, dry_batch=False).fit()
        assert seen == [
            "before all",
            *("step 1", "step 2", "step 3"),
            *("before validation", "validation batch 0", "validation batch 1", "after validation: val/loss"),
            "after all",
        ]

    def test_two_of_one_class_keep_their_states_apart(self, tmp_path: Path) -> None:
        class Counter(Callback):
            def __init__(self, count: int) -> None:
                self.count = count

            def on_step_end(self, trainer: Trainer) -> None:
                self.count += 1

            def state_dict(self) -> dict[str, Any]:
                return {"count": self.count}

            def load_state_dict(self, state: Mapping[str, Any]) -> None:
                self.count = state["count"]

        make_trainer(callbacks=[Counter(0), Counter(100)], run_dir=tmp_path / "run").fit()
        counters = [Counter(-1), Counter(-1), Counter(-1)]
        make_trainer(callbacks=counters, run_dir=tmp_path / "run", epochs=2).fit(resume=True)
        assert [counter.count for counter in counters] == [6, 106, 2]  # the third is new and begins fresh

    def test_a_hook_that_nobody_overrides_is_not_called(self) -> None:
        trainer = make_trainer(callbacks=[TimeLimit(minutes=10)])
        assert len(trainer.hooks.step_end) == 1
        assert trainer.hooks.log == ()

    def test_stop_ends_the_run_as_a_finished_one_and_preempt_as_one_to_resume(self, tmp_path: Path) -> None:
        for way, state in (("stop", "finished"), ("preempt", "preempted")):

            class Leave(Callback):
                def on_step_end(self, trainer: Trainer, way: str = way) -> None:
                    if trainer.state.step == 2:
                        getattr(trainer, way)("a test")

            trainer = make_trainer(epochs=5, callbacks=[Leave()], run_dir=tmp_path / way)
            assert trainer.fit().step == 2
            assert json.loads((tmp_path / way / "status.json").read_text())["state"] == state
            assert (tmp_path / way / "checkpoints/step-00000002").is_dir()


class TestDebugSwitches:
    @pytest.mark.parametrize(
        ("switch", "steps", "evaluated"),
        [("one_batch", 1, 8), ("few_batches", 3, 24), ("one_epoch", 5, 40), ("one_validation", 1, 40), (None, 20, 40)],
    )
    def test_they_shorten_training_and_evaluation(self, switch: Any, steps: int, evaluated: int) -> None:
        class Count(Metric):
            def reset(self) -> None:
                self.samples = 0

            def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
                self.samples += len(targets)

            def compute(self) -> Any:
                return self.samples

        trainer = make_trainer(
            train_data=points(40),
            val_data=points(40),
            test_data=points(40),
            test_at_end=True,
            eval_batch_size=8,
            epochs=4,
            metrics={"count": Count()},
            debug=switch,
            monitor="loss",
        )
        assert trainer.fit().step == steps
        last = trainer.recorder.history
        assert next(record for record in last if "val/count" in record)["val/count"] == evaluated
        assert last[-1]["test/count"] == evaluated

    def test_overfit_batch_trains_on_the_first_batch_over_and_over(self) -> None:
        seen = []

        class Watch(Callback):
            def on_step_end(self, trainer: Trainer) -> None:
                assert trainer.last_batch is not None
                seen.append(trainer.last_batch.ids.tolist())

        trainer = make_trainer(epochs=1000, shuffle=True, debug="overfit_batch", callbacks=[Watch()], log_every=10)
        trainer.fit()
        assert len(seen) == 200
        assert all(ids == seen[0] for ids in seen)
        losses = [record["train/loss"] for record in trainer.recorder.history]
        assert losses[-1] < losses[0]

    def test_a_profile_is_written_into_the_run_folder(self, tmp_path: Path) -> None:
        trainer = make_trainer(epochs=4, profile=ProfileSettings(start_step=2, steps=3), run_dir=tmp_path / "run")
        plain = make_trainer(linear(), epochs=4)
        trainer.fit()
        plain.fit()
        trace = json.loads((tmp_path / "run/profile/trace.json").read_text())
        names = {event.get("name") for event in trace["traceEvents"]}
        assert "aten::addmm" in names
        assert sum(name is not None and str(name).startswith("ProfilerStep") for name in names) == 3
        assert "aten::" in (tmp_path / "run/profile/operators.txt").read_text()
        assert torch.equal(weights(trainer.model), weights(plain.model))


class TestLengthAndOptions:
    @pytest.mark.parametrize(
        ("options", "steps"),
        [({"epochs": 2}, 6), ({"epochs": 2, "drop_last": True}, 4), ({"steps": 7}, 7), ({"epochs": 0}, 0)],
    )
    def test_a_run_is_as_long_as_it_is_told(self, options: Any, steps: int) -> None:
        assert make_trainer(**options).fit().step == steps

    def test_both_or_neither_length_is_refused(self) -> None:
        for options, given in (({"epochs": 1, "steps": 1}, "both"), ({"epochs": None}, "neither")):
            with pytest.raises(UsageError, match=given):
                make_trainer(**options)

    def test_epochs_of_data_without_a_length_are_refused_and_steps_are_not(self) -> None:
        class Stream(IterableDataset[Any]):
            def __iter__(self) -> Any:
                return iter(points(20))

        with pytest.raises(UsageError, match=r"set trainer\.steps"):
            make_trainer(train_data=Stream(), epochs=1)
        assert make_trainer(train_data=Stream(), steps=7).fit().step == 7

    def test_a_mistyped_option_is_refused_with_the_nearest_right_one(self) -> None:
        with pytest.raises(TypeError, match=r"no option 'epohcs'; did you mean 'epochs'\?"):
            make_trainer(epohcs=3)

    def test_options_reach_the_settings_they_belong_to(self) -> None:
        trainer = make_trainer(epochs=2, workers=0, keep_last=5, clip_norm=1.0)
        assert trainer.settings.clip_norm == 1.0
        assert trainer.loader.batch_size == 8
        assert trainer.checkpoint.keep_last == 5

    def test_given_settings_are_not_changed(self) -> None:
        from flambeau.config.sections import TrainerSettings

        settings = TrainerSettings(epochs=3)
        make_trainer(settings=settings, epochs=1)
        assert settings.epochs == 3


class TestLog:
    def test_each_record_is_the_mean_over_the_samples_since_the_last(self) -> None:
        """The third batch of the epoch has 4 samples, the others 8."""
        every = make_trainer(linear(), epochs=2, log_every=1)
        rare = make_trainer(linear(), epochs=2, log_every=4)
        every.fit()
        rare.fit()
        losses = [record["train/loss"] for record in every.recorder.history]
        assert [record["step"] for record in rare.recorder.history] == [4, 6]
        expected = (8 * losses[0] + 8 * losses[1] + 4 * losses[2] + 8 * losses[3]) / 28
        assert rare.recorder.history[0]["train/loss"] == pytest.approx(expected, rel=1e-9)
        assert [record["samples"] for record in rare.recorder.history] == [28, 40]
        assert [record["epoch"] for record in rare.recorder.history] == [2, 2]

    def test_the_rates_of_all_groups_are_in_it(self) -> None:
        from flambeau.config.sections import GroupSettings, OptimizerSettings
        from flambeau.optim import build_optimizer

        model = linear()
        optimizer = build_optimizer(
            model,
            torch.optim.AdamW,
            {"lr": 0.1},
            OptimizerSettings(groups=[GroupSettings(pattern="bias", lr=0.01)]),
        )
        trainer = make_trainer(model, optimizer=lambda model: optimizer)
        trainer.fit()
        record = trainer.recorder.history[0]
        rates = {key: value for key, value in record.items() if key == "lr" or key.startswith("lr/")}
        assert sorted(rates.values()) == [0.01, 0.1]
        assert len(rates) == 2

    def test_status_tells_step_epoch_and_best(self, tmp_path: Path) -> None:
        make_trainer(epochs=2, val_data=points(), run_dir=tmp_path / "run").fit()
        status = json.loads((tmp_path / "run/status.json").read_text())
        assert (status["state"], status["step"], status["epoch"], status["total_steps"]) == ("finished", 6, 2, 6)
        assert status["best"]["metric"] == "val/loss"

    def test_nothing_of_the_clock_is_in_the_metrics(self, tmp_path: Path) -> None:
        for name in ("one", "other"):
            make_trainer(epochs=2, val_data=points(), run_dir=tmp_path / name).fit()
        assert (tmp_path / "one/metrics.jsonl").read_bytes() == (tmp_path / "other/metrics.jsonl").read_bytes()
        timing = json.loads((tmp_path / "one/timing.jsonl").read_text().splitlines()[0])
        assert timing["samples_per_second"] > 0


def test_the_clock_asks_for_checkpoints_besides_those_that_are_due(tmp_path: Path) -> None:
    """Here the minutes are over after every step."""
    make_trainer(epochs=1, every_epochs=None, every_minutes=1e-9, keep_last=9, run_dir=tmp_path / "run").fit()
    saved = sorted(path.name for path in (tmp_path / "run/checkpoints").glob("step-*"))
    assert saved == ["step-00000001", "step-00000002", "step-00000003"]


def test_a_state_written_by_one_version_can_lack_nothing() -> None:
    """The state's own round trip."""
    state = TrainState(step=3, samples=20, best_score=0.5, best_step=2, stale_validations=1, validated_step=3)
    other = TrainState()
    other.load_state_dict(state.state_dict())
    assert other == state


class TestFailingDisk:
    """A save that fails is told and does not end the training; the run's last word is that it failed."""

    class Block(Callback):
        """Puts a file where checkpoints go."""

        def on_fit_start(self, trainer: Trainer) -> None:
            assert trainer.run_folder is not None
            trainer.run_folder.checkpoints.write_text("in the way")

    def test_training_goes_on_and_the_end_tells_of_it(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        trainer = make_trainer(epochs=3, every_steps=1, callbacks=[self.Block()], run_dir=tmp_path / "run")
        with pytest.raises(CheckpointError, match=r"step 9,? (was not|could not be) saved"):
            trainer.fit()
        assert trainer.state.step == 9
        assert "was not saved" in capsys.readouterr().err
        assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "failed"

    def test_an_error_of_the_user_s_is_not_hidden_by_it(self, tmp_path: Path) -> None:
        class Fail(Callback):
            def on_step_end(self, trainer: Trainer) -> None:
                if trainer.state.step == 2:
                    raise ArithmeticError("mine")

        trainer = make_trainer(every_steps=1, callbacks=[self.Block(), Fail()], run_dir=tmp_path / "run")
        with pytest.raises(ArithmeticError, match="mine"):
            trainer.fit()
        error = json.loads((tmp_path / "run/status.json").read_text())["error"]
        assert error == "ArithmeticError: mine"
