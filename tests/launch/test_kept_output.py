"""What a run prints is in its folder, from the first import of a user's module on."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from support.projects import InProcess, Project

from flambeau.launch import ranks
from flambeau.launch.ranks import kept_output, place_rank_log

NOISY = """
import sys, warnings
print("printed while it is imported")

@register.model("noisy")
class Noisy(DropNet):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__(num_classes)
        print("printed while it is built")

    def forward(self, inputs):
        if not self.training:
            return super().forward(inputs)
        warnings.warn("a warning of the model's")
        print("no end of line", end="", file=sys.stderr)
        return super().forward(inputs)

class Chatty(Jitter):
    def __call__(self, sample):
        print("a worker's line")
        return super().__call__(sample)

@register.data("chatty")
class ChattyPoints(Points):
    def __init__(self, size: int = 92, seed: int = 0) -> None:
        super().__init__(size, seed=seed)
        self.train_transform = Chatty(0.1)
"""


def lines_of(run: str) -> list[str]:
    return [line for line in Path(run, "logs/rank-0.txt").read_text().splitlines() if line]


@pytest.fixture
def flambeau(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    return InProcess(Project.write(tmp_path / "project", parts=NOISY), monkeypatch, capsys)


def test_all_that_is_printed_is_kept_from_before_there_is_a_folder(flambeau: InProcess) -> None:
    """A module that is imported, a model that is built, a warning, a last line without an end; and the terminal has
    them as ever. In a process of its own: pytest keeps warnings to itself."""
    options = ["model.name=noisy", "trainer.steps=2", "trainer.epochs=null", "--run-dir", "run"]
    done = flambeau.project.run("train", "tiny", *options)
    lines = lines_of("run")
    assert lines[0].startswith("--- process") and "rank 0 of 1" in lines[0]
    assert lines[1:3] == ["printed while it is imported", "printed while it is built"]
    assert any("a warning of the model's" in line for line in lines)
    assert any("no end of line" in line for line in lines)
    assert "run    run" in lines and any(line.startswith("done") for line in lines)
    assert "printed while it is imported" in done.stdout and "a warning of the model's" in done.stderr


def test_lines_of_data_workers_are_kept(flambeau: InProcess) -> None:
    """They are forked off, and write into the same file."""
    flambeau("train", "tiny", "data.name=chatty", "data.workers=2", "trainer.epochs=1", "--run-dir", "run")
    assert lines_of("run").count("a worker's line") >= 92


def test_a_run_that_is_resumed_writes_below(flambeau: InProcess) -> None:
    flambeau("train", "tiny", "trainer.epochs=1", "--run-dir", "run")
    flambeau("resume", "run", "trainer.epochs=2", "--force")
    assert sum(line.startswith("--- process") for line in lines_of("run")) == 2


def test_the_streams_are_given_back_after_an_error_too(flambeau: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing of one run is in the output of the next."""
    monkeypatch.setenv("FAIL_AT", "2")
    before = sys.stdout, sys.stderr
    with pytest.raises(RuntimeError, match="the test's own failure"):
        flambeau("train", "tiny", "--run-dir", "failing")
    assert (sys.stdout, sys.stderr) == before and ranks.output() is None
    assert "the test's own failure" in Path("failing/log.txt").read_text()


def test_a_stream_that_somebody_replaced_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever redirects output within a run puts it back himself."""
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    other = sys.__stdout__
    with kept_output():
        place_rank_log(tmp_path)
        monkeypatch.setattr(sys, "stdout", other)
    assert sys.stdout is other


def test_a_process_that_is_forked_off_does_not_repeat_a_begun_line(tmp_path: Path) -> None:
    with kept_output():
        place_rank_log(tmp_path)
        print("begun by the parent, ", end="")
        if (child := os.fork()) == 0:
            print("said by the child")
            os._exit(0)
        os.waitpid(child, 0)
        print("ended by the parent")
    lines = (tmp_path / "logs/rank-0.txt").read_text().splitlines()[1:]
    assert lines == ["said by the child", "begun by the parent, ended by the parent"]
