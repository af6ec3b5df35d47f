"""When a run logs, validates and saves, how long an epoch is, and how much of the data a validation measures."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.processes import together
from support.projects import InProcess
from support.tasks import make_trainer, points, weights
from torch.utils.data import IterableDataset

from flambeau import Callback, Trainer
from flambeau.config.sections import CheckpointSettings, TrainerSettings
from flambeau.data import EvalFeeder
from flambeau.errors import UsageError
from flambeau.run_folder import read_metrics
from flambeau.training.due import Due


class Endless(IterableDataset[Any]):
    """Samples without end: number k is the same in each pass."""

    def __iter__(self) -> Any:
        for index in itertools.count():
            yield torch.full((4,), float(index % 7)), torch.tensor(index % 3)


def recorded(trainer: Trainer, key: str) -> list[int]:
    """The steps of the records that have `key`."""
    return [record["step"] for record in trainer.recorder.history if key in record]


class TestTimesPerEpoch:
    @given(steps=st.integers(1, 200), times=st.integers(1, 300), epochs=st.integers(1, 3))
    def test_they_are_spread_evenly_over_every_epoch(self, steps: int, times: int, epochs: int) -> None:
        """As many as are asked for, or as there are steps; the last at the end; gaps differ by one step at most."""
        total = steps * epochs
        settings = TrainerSettings(log_per_epoch=times, validate_per_epoch=times)
        due = Due(settings, CheckpointSettings(per_epoch=times, every_epochs=None), steps, total)
        for when in (due.log, due.validation, due.checkpoint):
            steps_due = [step for step in range(1, total + 1) if when(step)]
            for epoch in range(epochs):
                own = [step - epoch * steps for step in steps_due if epoch * steps < step <= (epoch + 1) * steps]
                assert len(own) == min(times, steps)
                assert own[-1] == steps
                gaps = [after - before for before, after in itertools.pairwise([0, *own])]
                assert max(gaps) - min(gaps) <= 1

    @pytest.mark.parametrize(("times", "steps"), [(1, [3, 6]), (2, [2, 3, 5, 6]), (3, [1, 2, 3, 4, 5, 6])])
    def test_a_run_does_it_then(self, times: int, steps: list[int]) -> None:
        """Three steps an epoch."""
        trainer = make_trainer(epochs=2, val_data=points(), validate_per_epoch=times, log_per_epoch=times)
        trainer.fit()
        assert recorded(trainer, "val/loss") == recorded(trainer, "train/loss") == steps

    def test_fewer_steps_than_times_is_each_step(self, tmp_path: Path) -> None:
        trainer = make_trainer(
            epochs=2, val_data=points(), validate_per_epoch=10, per_epoch=10, keep_last=9, run_dir=tmp_path / "run"
        )
        trainer.fit()
        assert recorded(trainer, "val/loss") == [1, 2, 3, 4, 5, 6]
        assert trainer.store is not None
        assert trainer.store.steps() == [1, 2, 3, 4, 5, 6]

    def test_data_of_unknown_length_needs_the_length_of_an_epoch(self) -> None:
        with pytest.raises(UsageError, match=r"validate_per_epoch: the length .*\n.*trainer.steps_per_epoch"):
            make_trainer(train_data=Endless(), steps=4, validate_per_epoch=2)
        make_trainer(train_data=Endless(), steps=4, validate_per_epoch=2, steps_per_epoch=4)

    def test_a_setting_that_another_replaces_is_refused(self, flambeau: InProcess) -> None:
        """Before anything is trained."""
        answer = flambeau("train", "tiny", "trainer.validate_per_epoch=2", "trainer.validate_every_steps=5", expect=2)
        assert "trainer.validate_every_steps: nothing reads this value: `validate_per_epoch` replaces it" in answer.err


class TestStepsPerEpoch:
    def test_it_gives_endless_data_epochs(self) -> None:
        """Their number, their hooks and what is due by them."""
        seen: list[tuple[str, int]] = []

        class Watch(Callback):
            def on_epoch_start(self, trainer: Trainer) -> None:
                seen.append(("start", trainer.state.step))

            def on_epoch_end(self, trainer: Trainer) -> None:
                seen.append(("end", trainer.epoch))

        trainer = make_trainer(
            train_data=Endless(), epochs=3, steps_per_epoch=4, val_data=points(), callbacks=[Watch()]
        )
        assert trainer.fit().step == 12
        assert seen == [("start", 0), ("end", 1), ("start", 4), ("end", 2), ("start", 8), ("end", 3)]
        assert recorded(trainer, "val/loss") == [4, 8, 12]
        assert [record["epoch"] for record in trainer.recorder.history if "val/loss" in record] == [1, 2, 3]

    def test_the_next_epoch_goes_on_in_the_data(self) -> None:
        """Not even the batches of a run know of it."""
        usual = make_trainer(steps=7, shuffle=True)
        named = make_trainer(steps=7, shuffle=True, steps_per_epoch=2)
        usual.fit()
        named.fit()
        assert torch.equal(weights(usual.model), weights(named.model))
        assert named.epoch == 4

    @pytest.mark.parametrize("at", ["3", "4", "5"])
    def test_a_resume_within_it_gives_the_same_bits(
        self, at: str, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = ["trainer.epochs=3", "trainer.steps_per_epoch=4", "trainer.validate_per_epoch=2"]
        flambeau("train", "tiny", "--run-dir", "whole", *settings)
        monkeypatch.setenv("PREEMPT_AT", at)
        flambeau("train", "tiny", "--run-dir", "parts", *settings, expect=75)
        monkeypatch.delenv("PREEMPT_AT")
        flambeau("resume", "parts")
        root = flambeau.project.root
        assert (root / "parts/metrics.jsonl").read_bytes() == (root / "whole/metrics.jsonl").read_bytes()
        scored = [record["step"] for record in read_metrics(root / "whole/metrics.jsonl") if "val/loss" in record]
        assert scored == [2, 4, 6, 8, 10, 12]


def scores_of(samples: int | None, size: int, stream: bool, options: dict[str, Any]) -> dict[str, float]:
    """What a validation gives, in a process of several or alone."""
    data: Any = points(size)
    if stream:
        tensors = data.tensors

        class Stream(IterableDataset[Any]):
            def __iter__(self) -> Any:
                return iter(zip(*tensors, strict=True))

        data = Stream()
    return make_trainer(val_data=data, **options).evaluate(samples=samples)


class TestValidateBatches:
    def test_a_validation_measures_the_first_samples_alone(self) -> None:
        """So many batches of the global batch; the rest of the data is for the test at the end and `evaluate`."""
        trainer = make_trainer(val_data=points(50, seed=3), validate_batches=2)  # of 8 samples
        first = points(50, seed=3)[:16]
        assert trainer.validate()["val/loss"] == trainer.evaluate(torch.utils.data.TensorDataset(*first))["loss"]
        assert trainer.evaluate()["loss"] != trainer.validate()["val/loss"]

    def test_their_size_is_that_of_the_evaluation_if_it_is_given(self) -> None:
        trainer = make_trainer(val_data=points(50, seed=3), validate_batches=2, eval_batch_size=3)
        first = torch.utils.data.TensorDataset(*points(50, seed=3)[:6])
        assert trainer.validate()["val/loss"] == pytest.approx(trainer.evaluate(first)["loss"], abs=1e-12)

    def test_more_than_there_are_is_all(self) -> None:
        trainer = make_trainer(val_data=points(20), validate_batches=99)
        assert trainer.validate()["val/loss"] == trainer.evaluate()["loss"]

    def test_endless_validation_data_can_be_measured(self) -> None:
        trainer = make_trainer(val_data=Endless(), validate_batches=3)
        trainer.fit()
        assert recorded(trainer, "val/loss") == [3]

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("samples", [5, 16, 17])
    def test_the_samples_are_the_same_at_any_number_of_processes(self, samples: int, stream: bool) -> None:
        options = {"eval_batch_size": 4, "dry_batch": False}
        alone = scores_of(samples, 23, stream, options)
        assert together(3, scores_of, samples, 23, stream, options) == [alone] * 3

    def test_the_work_is_divided_over_the_processes(self) -> None:
        """Not taken from the first ones' shares of the whole data."""
        feeders = [
            EvalFeeder(points(1000), batch_size=10, rank=rank, ranks=4, samples=80) for rank in range(4)
        ]  # 8 of 100 batches
        assert [len(list(feeder.batches())) for feeder in feeders] == [2, 2, 2, 2]
