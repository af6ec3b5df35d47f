"""Where the time goes: data against computing, told without waiting for a device; no time is asserted."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from support.tasks import linear, make_trainer, points, weights
from torch.utils.data import Dataset

from flambeau import console
from flambeau.training import pace
from flambeau.training.pace import DataWatch, Pace, Smoothed, Span, between


class Slow(Dataset[Any]):
    """Takes a while for each sample."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.points = seconds, points(24)

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        time.sleep(self.seconds)
        return self.points[index]


def timings(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]


class TestTheRecord:
    def test_the_time_of_an_interval_is_split_into_data_and_steps(self, tmp_path: Path) -> None:
        """And the seconds of validations stand beside it, those after the last log too."""
        make_trainer(train_data=Slow(0.01), val_data=points(), epochs=2, log_every=1, run_dir=tmp_path / "run").fit()
        *intervals, last = timings(tmp_path / "run")
        for record in intervals[1:]:
            assert record["data_seconds"] >= 0.08 and record["step_seconds"] >= 0
            total = record["data_seconds"] + record["step_seconds"]
            assert total == pytest.approx(record["milliseconds_per_step"] / 1e3, abs=1e-3)
        assert [record["step"] for record in timings(tmp_path / "run") if "validation_seconds" in record] == [4, 6]
        assert last.keys() == {"step", "time", "validation_seconds"}

    def test_the_numbers_of_a_run_do_not_depend_on_it(self) -> None:
        """Bars and clocks watch."""
        shown, quiet = (make_trainer(linear(), epochs=2, progress=progress) for progress in (True, False))
        shown.fit()
        quiet.fit()
        assert torch.equal(weights(shown.model), weights(quiet.model))


class TestTheWarning:
    @pytest.fixture(autouse=True)
    def _at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pace, "LEAST_SECONDS", 0.01)

    def test_a_run_that_mostly_waits_for_data_says_so_once_with_the_remedy(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make_trainer(train_data=Slow(0.02), epochs=3, log_every=1, run_dir=tmp_path / "run").fit()
        err = capsys.readouterr().err
        assert err.count("waiting for data") == 1 and "raise data.workers (now 0)" in err
        assert "waiting for data" in (tmp_path / "run/log.txt").read_text()

    def test_a_run_whose_data_are_there_says_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        class Busy(torch.nn.Linear):
            def forward(self, inputs: torch.Tensor) -> torch.Tensor:
                time.sleep(0.02)
                return super().forward(inputs)

        make_trainer(Busy(4, 3), epochs=3, log_every=1).fit()
        assert "waiting for data" not in capsys.readouterr().err

    def test_the_first_interval_is_no_measure(self) -> None:
        """Workers start in it."""
        watch = DataWatch()
        assert watch.judge(Span(100.0, 99.0, 1, 8), 2) is None
        assert watch.judge(Span(100.0, 10.0, 1, 8), 2) is None

    def test_half_of_the_time_is_the_limit(self) -> None:
        watch = DataWatch()
        watch.judge(Span(1.0, 1.0, 1, 8), 2)
        assert watch.judge(Span(100.0, 50.0, 1, 8), 2) is None
        assert "now 2" in (watch.judge(Span(100.0, 51.0, 1, 8), 2) or "")
        assert watch.judge(Span(100.0, 51.0, 1, 8), 2) is None


def test_what_is_left_out_is_neither_data_nor_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def clock() -> float:
        return now

    monkeypatch.setattr(time, "perf_counter", clock)
    taken = Pace()

    def batches() -> Any:
        nonlocal now
        for number in range(3):
            now += 2.0
            yield number

    before = taken.read(0, 0)
    for _ in taken.timed(batches()):
        now += 1.0  # a step
    now += 7.0  # a validation
    taken.leave_out(7.0)
    span = between(before, taken.read(3, 24))
    assert (span.seconds, span.data_seconds, span.steps, span.samples) == (9.0, 6.0, 3, 24)
    assert span.data_share == pytest.approx(2 / 3)


def test_the_figures_beside_the_bar_follow_the_last_seconds() -> None:
    """An average that forgets; right from the first span on."""
    figures = Smoothed()
    assert str(figures) == ""
    figures.add(Span(0.25, 0.05, 10, 250))
    assert str(figures) == "1,000 samples/s, 20% waiting for data"
    for _ in range(400):
        figures.add(Span(0.25, 0.2, 10, 500))
    assert str(figures) == "2,000 samples/s, 80% waiting for data"


def test_two_bars_stand_under_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training with its epoch, loss, throughput, share of data and remaining time; evaluation with its scores."""
    terminal = io.StringIO()
    screen = Console(file=terminal, force_terminal=True, width=200)
    monkeypatch.setattr(console, "is_terminal", lambda: True)
    monkeypatch.setattr(console, "console", lambda *, error=False: screen)
    monkeypatch.setattr("flambeau.training.progress.REFRESH_SECONDS", 0.0)
    monkeypatch.setattr("flambeau.training.recorder.REFRESH_SECONDS", 0.0)
    make_trainer(val_data=points(40), epochs=2, log_every=1, progress=True, eval_batch_size=8).fit()
    shown = terminal.getvalue()
    assert "epoch 2/2" in shown and "samples/s" in shown and "waiting for data" in shown
    assert "evaluation" in shown and "4/5 batches" in shown and "val/loss" in shown
    assert "0:00:00" in shown
