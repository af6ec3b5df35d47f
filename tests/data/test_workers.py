"""Worker processes change nothing but the speed, and leave nothing behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from flambeau.config.sections import LoaderSettings
from flambeau.data import EvalFeeder, Feeder
from flambeau.errors import FlambeauError


class Counted(Dataset[Any]):
    def __init__(self, size: int, delay: float = 0.0) -> None:
        self.size = size
        self.delay = delay

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        time.sleep(self.delay)
        return {"inputs": {"x": torch.full((3,), float(index)), "name": str(index)}, "targets": index}


class PidOf(Counted):
    def __getitem__(self, index: int) -> Any:
        return os.getpid(), index


class TwoPartError(Exception):
    """An error whose constructor takes more than a message."""

    def __init__(self, path: str, line: int) -> None:
        super().__init__(path, line)
        self.path, self.line = path, line


class LocalError(Exception):
    """An error that cannot be copied to another process."""

    def __reduce__(self) -> Any:
        raise TypeError("not to be copied")


class Failing(Counted):
    def __init__(self, error: Exception) -> None:
        super().__init__(8)
        self.error = error

    def __getitem__(self, index: int) -> Any:
        if index == 5:
            raise self.error
        return super().__getitem__(index)


class Dying(Counted):
    def __getitem__(self, index: int) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def jitter(sample: Any) -> Any:
    sample["inputs"]["x"] += torch.rand(3)
    return sample


def feeder(dataset: Any, workers: int, **kwargs: Any) -> Feeder:
    return Feeder(dataset, settings=LoaderSettings(workers=workers, **kwargs), batch_size=4, seed=0, transform=None)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def end_of(pids: set[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def pids_of(batches: Any, steps: int) -> set[int]:
    return {int(pid) for batch in islice(batches, steps) for pid in batch.inputs}


def test_workers_give_the_same_bits_as_the_main_process() -> None:
    """With random transforms, across epochs, from the middle, with any number of workers and batches ahead."""
    runs = []
    for workers, prefetch in ((0, 2), (1, 1), (2, 4)):
        settings = LoaderSettings(workers=workers, prefetch=prefetch)
        train = Feeder(Counted(10), settings=settings, batch_size=4, seed=3, transform=jitter)
        batches = list(islice(train.batches(2), 8))
        train.close()
        runs.append([(b.ids.tolist(), b.inputs["x"].tolist(), b.inputs["name"], b.targets.tolist()) for b in batches])
    assert runs[0] == runs[1] == runs[2]
    assert runs[0][0][2] == [str(index) for index in runs[0][0][0]]


def test_reading_by_workers_does_not_disturb_the_global_generators() -> None:
    """torch's own loader draws a seed from them each time."""
    before = torch.get_rng_state()
    train = feeder(Counted(10), 1)
    next(train.batches())
    train.close()
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_stay_from_one_evaluation_to_the_next() -> None:
    """Even if one is broken off in the middle, the next is whole and right."""
    evaluation = EvalFeeder(PidOf(40), batch_size=4, workers=2)
    first, second = pids_of(evaluation.batches(), 10), pids_of(evaluation.batches(), 10)
    assert first == second
    assert os.getpid() not in first
    next(evaluation.batches())
    assert [batch.ids[0] for batch in evaluation.batches()] == list(range(0, 40, 4))
    evaluation.close()
    assert end_of(first, 0)


@pytest.mark.parametrize("how", ["close", "collect", "collect the batches too"])
def test_no_process_is_left_behind(how: str) -> None:
    """Neither after close nor when nobody holds the feeder any more."""
    train = feeder(PidOf(400), 2)
    batches = train.batches()
    pids = pids_of(batches, 8)
    assert len(pids) == 2
    if how == "close":
        train.close()
    else:
        del train
        assert not end_of(pids, 0)  # the batches are still held
        del batches
        gc.collect()
    assert end_of(pids, 5)


@pytest.mark.slow
def test_close_ends_a_worker_that_is_stuck() -> None:
    """A sample that takes for ever does not hold up the end of a run for ever."""
    before = {process.pid for process in multiprocessing.active_children()}
    train = feeder(Counted(8, delay=600), 1)
    batches = train.batches()
    reading = threading.Thread(target=next, args=(batches,), daemon=True)
    reading.start()
    while not (pids := {process.pid for process in multiprocessing.active_children()} - before):
        time.sleep(0.01)
    time.sleep(0.5)
    train.close()
    assert end_of(pids, 0)


@pytest.mark.parametrize("error", [KeyError("label"), TwoPartError("a.csv", 3)])
def test_an_error_in_a_worker_arrives_as_the_users_own(error: Exception) -> None:
    """Its type, its attributes, which sample it was, and where in the code, as if it had happened here."""
    evaluation = EvalFeeder(Failing(error), batch_size=4, workers=1)
    with pytest.raises(type(error)) as raised:
        list(evaluation.batches())
    evaluation.close()
    assert raised.value.args == error.args
    assert vars(raised.value).items() >= vars(error).items()
    assert raised.value.__notes__ == ["while reading sample 5 in an evaluation"]
    assert "raise self.error" in str(raised.value.__cause__)


def test_an_error_that_cannot_be_copied_arrives_as_text() -> None:
    """Instead of hanging the run."""
    evaluation = EvalFeeder(Failing(LocalError("no such file")), batch_size=4, workers=1)
    with pytest.raises(RuntimeError, match="LocalError: no such file") as raised:
        list(evaluation.batches())
    evaluation.close()
    assert "raise self.error" in str(raised.value.__cause__)


def test_a_worker_that_is_killed_is_reported() -> None:
    """With what to do, since mostly it is memory that ran out."""
    evaluation = EvalFeeder(Dying(8), batch_size=4, workers=1)
    with pytest.raises(FlambeauError, match=r"(?s)a data worker died.*lower data\.workers"):
        list(evaluation.batches())
    evaluation.close()


def test_signals_to_the_whole_process_group_leave_the_workers_at_work() -> None:
    """Whoever stops a run signals all its processes; the last step and save still need the data."""
    evaluation = EvalFeeder(PidOf(200), batch_size=4, workers=2)
    batches = evaluation.batches()
    pids = pids_of(batches, 2)
    for pid in pids:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            os.kill(pid, number)
    assert sum(batch.size for batch in batches) == 192
    evaluation.close()


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from test_workers import PidOf, feeder, pids_of
train = feeder(PidOf(400), 2)
batches = train.batches()
print(*pids_of(batches, 8), flush=True)
{then}
"""


def script(then: str) -> subprocess.Popen[str]:
    code = SCRIPT.format(folder=str(Path(__file__).parent), then=then)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("then", ["", "raise SystemExit(3)"])
def test_a_program_that_ends_without_closing_takes_its_workers_along(then: str) -> None:
    """At once, with its own exit status."""
    with script(then) as process:
        assert process.stdout is not None
        pids = {int(pid) for pid in process.stdout.readline().split()}
        assert process.wait(timeout=20) == (3 if then else 0)
    assert len(pids) == 2
    assert end_of(pids, 0.5)


@pytest.mark.slow
def test_workers_end_when_the_program_is_killed() -> None:
    """They look every few seconds whether their parent is still there."""
    with script("import time; time.sleep(600)") as process:
        assert process.stdout is not None
        pids = {int(pid) for pid in process.stdout.readline().split()}
        process.kill()
    assert end_of(pids, 15)
