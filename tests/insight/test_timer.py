"""Times of blocks, alone and in a run's record; no time is asserted but that of a clock of the test's own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tasks import linear, make_trainer, weights
from support.trackers import Numbers

from flambeau import Batch, Trainer
from flambeau.insight import timer
from flambeau.insight.timer import Totals, collected_by


class Ticking:
    """A clock that tests move."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ticking]:
    ticking = Ticking()
    monkeypatch.setattr(time, "perf_counter", ticking)
    yield ticking


def test_a_block_s_time_is_there_after_it_and_may_be_said(clock: Ticking, capsys: pytest.CaptureFixture[str]) -> None:
    with timer("load", say=True) as load:
        clock.now += 1.5
    assert (load.name, load.seconds) == ("load", 1.5)
    assert capsys.readouterr().out == "load: 1.5 s\n"


def test_blocks_within_blocks_bear_their_names(clock: Ticking) -> None:
    totals = Totals()
    with collected_by(totals), timer("step"):
        for _ in range(2):
            with timer("forward"):
                clock.now += 1
        with timer("backward"):
            clock.now += 3
    assert totals.take() == {"step/forward": 2.0, "step/backward": 3.0, "step": 5.0}
    assert totals.take() == {}


def test_a_decorated_function_is_timed_at_each_call_even_within_itself(clock: Ticking) -> None:
    @timer("call")
    def call(depth: int) -> None:
        clock.now += 1
        if depth:
            call(depth - 1)

    totals = Totals()
    with collected_by(totals):
        call(1)
        call(0)
    assert totals.take() == {"call": 3.0, "call/call": 1.0}


def test_a_block_that_raises_is_closed(clock: Ticking) -> None:
    totals = Totals()
    with collected_by(totals):
        with pytest.raises(KeyError), timer("outer"), timer("inner"):
            clock.now += 1
            raise KeyError
        with timer("next"):
            clock.now += 1
    assert totals.take() == {"outer/inner": 1.0, "outer": 1.0, "next": 1.0}


def test_threads_nest_by_themselves_and_lose_nothing() -> None:
    totals, rounds = Totals(), 200

    def work(name: str) -> None:
        for _ in range(rounds):
            with timer(name), timer("inner"):
                pass

    with collected_by(totals):
        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert totals.take().keys() == {*"abcd", *(f"{name}/inner" for name in "abcd")}


def test_it_waits_for_a_device_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: waits.append(1))
    with timer("free"):
        pass
    assert waits == []
    with timer("waits", synchronize=True):
        assert len(waits) == 1
    assert len(waits) == 2


class Timed(Trainer):
    def training_step(self, batch: Batch) -> torch.Tensor:
        with timer("loss"):
            return super().training_step(batch)


def test_the_times_of_a_run_s_blocks_are_in_its_record(tmp_path: Path) -> None:
    """With every record, for timing.jsonl and the trackers; not in metrics.jsonl, and not those of before the run."""
    numbers = Numbers()
    with timer("before"):
        pass
    trainer = make_trainer(linear(), kind=Timed, epochs=2, log_every=3, trackers=[numbers], run_dir=tmp_path / "run")
    trainer.fit()
    records: list[dict[str, Any]] = [
        json.loads(line) for line in (tmp_path / "run/timing.jsonl").read_text().splitlines()
    ]
    assert [record["step"] for record in records if record["timer/loss"] > 0] == [3, 6]
    assert len(numbers.of("time/timer/loss")) == 2
    assert "timer" not in (tmp_path / "run/metrics.jsonl").read_text()
    assert not any("before" in key for record in records for key in record)
    plain = make_trainer(linear(), epochs=2)
    plain.fit()
    assert torch.equal(weights(trainer.model), weights(plain.model))
