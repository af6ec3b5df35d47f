"""`flambeau export`: one file of weights from a run, or a reason why not."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.projects import InProcess, Project
from support.states import assert_same

from flambeau.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a run whose average decides what is best."""
    project = Project.write(tmp_path_factory.mktemp("export") / "project")
    average = ("trainer.ema={decay: 0.9}", "trainer.monitor=val/ema/accuracy", "checkpoint.keep_last=9")
    project.run("train", "tiny", "--run-dir", "run", "trainer.epochs=2", *average)
    project.run("train", "tiny", "--run-dir", "plain", "trainer.epochs=2")
    return project


@pytest.fixture
def flambeau(project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    return InProcess(project, monkeypatch, capsys)


def export(flambeau: InProcess, run: str, output: Path, *options: str, expect: int = 0) -> str:
    answer = flambeau("export", run, "--format", "safetensors", "--output", output, *options, expect=expect)
    return answer.out + answer.err


@pytest.mark.parametrize("which", ["best", "last", "12"])
@pytest.mark.parametrize(("run", "part"), [("run", "ema"), ("plain", "model")])
def test_the_weights_that_are_judged_are_written(
    flambeau: InProcess, tmp_path: Path, which: str, run: str, part: str
) -> None:
    """The average, where the score of the average decides; to the bit, under plain names."""
    said = export(flambeau, run, tmp_path / "out.safetensors", "--checkpoint", which)
    assert ("the average of the weights" in said) == (part == "ema")
    folder = flambeau.project.root / run / "checkpoints"
    checkpoint = Checkpoint.open((folder / (which if which != "12" else "step-00000012")).resolve())
    assert f"step {checkpoint.step}" in said
    wanted = dict(sorted(checkpoint.load(part)[part].items()))
    assert_same(load_file(tmp_path / "out.safetensors"), wanted)


def test_a_file_that_is_there_is_replaced_only_if_asked_to(flambeau: InProcess, tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    output.write_text("mine")
    assert "is there already" in export(flambeau, "plain", output, expect=2)
    assert output.read_text() == "mine"
    export(flambeau, "plain", output, "--force")
    assert load_file(output)
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--output", "nowhere/out.safetensors"), 2, "the folder nowhere does not exist"),
        (("--output", "out.safetensors", "--checkpoint", "newest"), 2, "use best, last or a step"),
        (("--output", "out.safetensors", "--checkpoint", "7"), 1, "has no checkpoint of step 7"),
    ],
)
def test_what_cannot_be_written_is_said_and_nothing_is_left(
    flambeau: InProcess, arguments: tuple[str, ...], status: int, said: str
) -> None:
    answer = flambeau("export", "plain", "--format", "safetensors", *arguments, expect=status)
    assert said in answer.err
    assert not (flambeau.project.root / "out.safetensors").exists()


def test_without_links_the_status_says_what_is_best(flambeau: InProcess, tmp_path: Path) -> None:
    """As on file systems that have none."""
    link = flambeau.project.root / "plain" / "checkpoints" / "best"
    target = link.readlink()
    link.unlink()
    try:
        assert f"step {int(target.name.removeprefix('step-'))}:" in export(flambeau, "plain", tmp_path / "out")
    finally:
        link.symlink_to(target)


def test_a_disk_that_fails_is_told_without_a_traceback(flambeau: InProcess, tmp_path: Path) -> None:
    """And no half file is left, nor the one that was there lost."""
    output = tmp_path / "out.safetensors"
    output.write_text("mine")
    limit, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        answer = flambeau("export", "plain", "--format", "safetensors", "--output", output, "--force", expect=None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert answer.status == 1
    assert "was not written: the file is larger than the file system" in answer.err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
