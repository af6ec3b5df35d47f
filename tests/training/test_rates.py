"""Learning rate and weight decay over a run: what is set at each step, logged, scaled and taken up again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.projects import InProcess
from support.states import assert_same_runs
from support.tasks import make_trainer, points, sgd
from torch.utils.data import IterableDataset

from flambeau.config.sections import LoaderSettings
from flambeau.errors import UsageError
from flambeau.optim import Constant, Cosine, Linear, Phase, Phases
from flambeau.run_folder import read_metrics
from flambeau.training.plan import global_batch

EPOCH = 12
"""Optimizer steps of an epoch of the small project; its configuration trains for four, in a cosine."""


def logged(run: str, key: str) -> list[float]:
    return [record[key] for record in read_metrics(Path(run) / "metrics.jsonl") if key in record]


class TestWarmUp:
    @pytest.mark.parametrize("name", ["cosine", "constant", "linear", "wsd", "polynomial", "cycles"])
    def test_it_is_heeded_by_every_schedule_and_rises(self, flambeau: InProcess, name: str) -> None:
        """Linearly over its epochs, from its factor to the full rate: not ignored, and no mere delay."""
        schedule = f"scheduler={{name: {name}, warmup_epochs: 1, warmup_factor: 0.0}}"
        flambeau("train", "tiny", schedule, "trainer.log_every=1", "trainer.epochs=3", "--run-dir", "run")
        rates = logged("run", "lr")
        assert rates[: EPOCH + 1] == pytest.approx([0.01 * step / EPOCH for step in range(EPOCH + 1)])

    def test_epochs_of_unknown_length_are_an_error_before_the_run(self) -> None:
        """An iterable data set has none."""

        class Stream(IterableDataset[Any]):
            def __iter__(self) -> Any:
                yield from points(20)

        def schedule(*, total_steps: int, steps_per_epoch: int | None) -> Cosine:
            return Cosine(total_steps=total_steps, steps_per_epoch=steps_per_epoch, warmup_epochs=1)

        with pytest.raises(UsageError, match="the length of the training data is not known"):
            make_trainer(train_data=Stream(), steps=3, scheduler=schedule)

    def test_what_makes_a_schedule_need_not_know_of_epochs(self) -> None:
        """A function of `total_steps` alone is called with nothing else."""
        trainer = make_trainer(scheduler=lambda total_steps: Linear(total_steps=total_steps))
        assert trainer.stepper.schedule.total_steps == 3
        assert trainer.stepper.schedule.steps_per_epoch is None
        assert make_trainer(scheduler=Cosine).stepper.schedule.steps_per_epoch == 3


class TestWeightDecay:
    def test_its_schedule_is_set_and_logged(self, flambeau: InProcess) -> None:
        """Per group, in proportion to its own: `wd` rises as DINO's does while `lr` falls."""
        options = ["optimizer.weight_decay=0.1", "weight_decay_scheduler={name: linear, final_factor: 10}"]
        groups = "optimizer.groups=[{pattern: head.*, weight_decay: 0.2, name: head}]"
        flambeau("train", "tiny", *options, groups, "trainer.log_every=12", "--run-dir", "run")
        factors = [1 + 9 * step / (4 * EPOCH) for step in (11, 23, 35, 47)]
        assert logged("run", "wd") == pytest.approx([0.1 * factor for factor in factors])
        assert logged("run", "wd/head") == pytest.approx([0.2 * factor for factor in factors])
        assert logged("run", "lr")[-1] < logged("run", "lr")[0]

    def test_the_update_is_made_with_it(self) -> None:
        """By hand: plain SGD with gradient zero shrinks a weight by lr times decay a step."""

        def zero(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return outputs.sum() * 0

        schedule = Phases([Phase(weight_decay_factor=(1.0, 0.0))], total_steps=3)
        trainer = make_trainer(criterion=zero, optimizer=sgd(0.5, weight_decay=0.3), scheduler=schedule)
        start = trainer.model.weight.detach().clone()  # type: ignore[operator, union-attr]
        trainer.fit()
        shrunk = (1 - 0.5 * 0.3) * (1 - 0.5 * 0.2) * (1 - 0.5 * 0.1)
        torch.testing.assert_close(trainer.model.weight, shrunk * start)

    def test_a_resumed_run_ends_with_the_same_bits(self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both schedules in phases, left in the midst of one."""
        phases = (
            "scheduler={name: phases, phases: [{epochs: 1, lr_factor: [0, 1]}, "
            "{part: 0.5, weight_decay_factor: [1, 5], shape: cosine}, {lr_factor: 0.01, shape: exponential}]}"
        )
        flambeau("train", "tiny", phases, "optimizer.weight_decay=0.1", "--run-dir", "whole")
        monkeypatch.setenv("PREEMPT_AT", "20")
        flambeau("train", "tiny", phases, "optimizer.weight_decay=0.1", "--run-dir", "run", expect=75)
        monkeypatch.delenv("PREEMPT_AT")
        flambeau("resume", "run")
        assert_same_runs(flambeau.project.root / "whole", flambeau.project.root / "run")

    def test_a_schedule_of_nothing_is_an_error(self) -> None:
        """Of an optimizer without weight decay, and two schedules of one weight decay."""
        with pytest.raises(UsageError, match="the optimizer SGD has none"):
            make_trainer(weight_decay_scheduler=Cosine)
        phases = Phases([Phase(weight_decay_factor=2.0)], total_steps=3)
        with pytest.raises(UsageError, match="both set the weight decay"):
            make_trainer(optimizer=sgd(weight_decay=0.1), scheduler=phases, weight_decay_scheduler=Cosine)


class TestStopAfter:
    def test_the_schedule_stays_that_of_the_whole_run(self, flambeau: InProcess) -> None:
        """The rates so far are its own, and the run goes on from there to the bits of one that never stopped."""
        flambeau("train", "tiny", "trainer.log_every=6", "--run-dir", "whole")
        flambeau("train", "tiny", "trainer.log_every=6", "trainer.stop_after_epochs=2", "--run-dir", "run")
        status = json.loads(Path("run/status.json").read_text())
        assert (status["state"], status["step"], status["total_steps"]) == ("finished", 24, 24)
        assert logged("run", "lr") == logged("whole", "lr")[:4]
        answer = flambeau("resume", "run", "trainer.stop_after_epochs=null")
        assert "the schedule of the steps so far stays the same" in answer.out
        assert_same_runs(flambeau.project.root / "whole", flambeau.project.root / "run")

    def test_more_than_the_run_has_is_an_error(self) -> None:
        """It would silently do nothing."""
        with pytest.raises(UsageError, match="4 epochs are more than"):
            make_trainer(epochs=3, stop_after_epochs=4)

    def test_a_debug_run_begins_as_the_whole_one(self) -> None:
        """Its few steps have the rates that they will have."""
        trainer = make_trainer(epochs=100, scheduler=Cosine, debug="few_batches", log_every=1)
        trainer.fit()
        rates = [record["lr"] for record in trainer.recorder.history]
        assert rates == [0.1 * Cosine(total_steps=300)(step) for step in range(3)]


class TestScaling:
    def test_it_is_of_the_global_batch_and_said(self, flambeau: InProcess) -> None:
        """Twice the batch, twice the rate, whatever the parts that a batch is taken in."""
        options = ["scheduler={name: constant}", "optimizer.lr_reference_batch=4"]
        for name, accumulate in (("one", 1), ("two", 2)):
            answer = flambeau("train", "tiny", *options, f"trainer.accumulate={accumulate}", "--run-dir", name)
            assert "0.02 for a batch of 8 (0.01 for 4, linear)" in answer.out
            assert set(logged(name, "lr")) == {0.02}
        shown = flambeau("config", "tiny", *options, "optimizer.lr_scaling=sqrt").out
        assert "in use: 0.0141421 for a batch of 8 (0.01 for 4, sqrt)" in shown

    def test_the_batch_of_a_process_counts_as_often_as_there_are_processes(self) -> None:
        """So that the rate follows from the global batch alone."""
        assert global_batch(LoaderSettings(batch_size_per_rank=16), 4) == 64
        assert global_batch(LoaderSettings(batch_size=64), 4) == 64


class TestRatesInTensors:
    def test_an_optimizer_that_keeps_its_rate_in_a_tensor_is_scheduled(self) -> None:
        """The tensor stays the one that compiled or captured code reads."""
        rate = torch.tensor(0.5)
        trainer = make_trainer(
            optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=rate, foreach=False, capturable=False),
            scheduler=Linear,
            log_every=1,
        )
        trainer.fit()
        assert trainer.optimizer.param_groups[0]["lr"] is rate
        assert [record["lr"] for record in trainer.recorder.history] == pytest.approx([0.5, 1 / 3, 1 / 6])
        assert Constant(total_steps=3).weight_decay_factor(1) is None
