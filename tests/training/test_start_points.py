"""A run that starts from weights of before: what it takes, what it says, and that a resumed one needs none of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.processes import together
from support.projects import InProcess, Project
from support.states import assert_same_runs

from flambeau.config import load_config
from flambeau.training.build import build_trainer

HEAD = ("model.num_classes=5", "metrics=null", "callbacks={beacon: {}}")
"""Another number of classes than the run that it starts from."""


@pytest.fixture
def first(flambeau: InProcess) -> Path:
    """A run to start from, with an average of its weights that its score is of."""
    average = ("trainer.ema={decay: 0.5}", "trainer.monitor=val/ema/accuracy")
    flambeau("train", "tiny", "--run-dir", "first", "trainer.epochs=1", *average)
    return flambeau.project.root / "first"


def weights(run: Path, checkpoint: str = "best", part: str = "model") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / checkpoint / f"{part}.safetensors")


def start_of(flambeau: InProcess, *arguments: str, run: str = "run") -> dict[str, torch.Tensor]:
    """The weights that a run has before its first step."""
    flambeau("train", "tiny", "--run-dir", run, *arguments, "trainer.epochs=0")
    return weights(flambeau.project.root / run, "last")


class TestANewRun:
    def test_it_begins_with_the_weights_of_the_run_that_is_named(self, flambeau: InProcess, first: Path) -> None:
        """By default with the best, averaged where the score is of the average."""
        found = start_of(flambeau, "pretrained.path=first")
        for name, tensor in weights(first, part="ema").items():
            assert torch.equal(found[name], tensor), name

    def test_its_average_begins_there_too(self, flambeau: InProcess, first: Path) -> None:
        start_of(flambeau, "pretrained.path=first", "trainer.ema={}")
        run = flambeau.project.root / "run"
        assert all(torch.equal(item, weights(run, "last")[n]) for n, item in weights(run, "last", "ema").items())

    def test_what_is_excluded_is_initialised_as_ever(self, flambeau: InProcess, first: Path) -> None:
        """The other weights are what the seed makes of them, start point or not."""
        found = start_of(flambeau, "pretrained={path: first, exclude: [head]}", *HEAD)
        fresh = start_of(flambeau, *HEAD, run="fresh")
        assert torch.equal(found["head.weight"], fresh["head.weight"])
        assert torch.equal(found["body.0.weight"], weights(first, part="ema")["body.0.weight"])

    def test_several_parts_from_several_places(self, flambeau: InProcess, first: Path) -> None:
        head = {"weight": torch.full((3, 16), 0.5), "bias": torch.zeros(3)}
        save_file(head, flambeau.project.root / "head.safetensors")
        backbone = "backbone: {path: first/checkpoints/last, include: [body], weights: model}"
        found = start_of(flambeau, f"pretrained={{{backbone}, head: {{path: head.safetensors, into: head}}}}")
        assert torch.equal(found["head.weight"], head["weight"])
        assert torch.equal(found["body.0.weight"], weights(first, "last")["body.0.weight"])
        parts = "[{path: first, exclude: [head]}, {path: head.safetensors, into: head}]"
        assert torch.equal(start_of(flambeau, f"pretrained={parts}", run="list")["head.weight"], head["weight"])

    def test_overlapping_parts_are_refused(self, flambeau: InProcess, first: Path) -> None:
        parts = "pretrained={a: {path: first}, b: {path: first, include: [head]}}"
        assert "'head.weight' comes from" in flambeau("train", "tiny", parts, expect=2).err

    def test_a_part_is_taken_back_by_null(self, flambeau: InProcess) -> None:
        flambeau("train", "tiny", "pretrained={a: {path: nowhere}}", "pretrained.a=null", "trainer.epochs=0")

    def test_a_path_may_start_from_the_project(
        self, flambeau: InProcess, first: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A configuration that names `runs/a` is started from any folder of the project."""
        (flambeau.project.root / "deep").mkdir()
        monkeypatch.chdir(flambeau.project.root / "deep")
        flambeau("train", "tiny", "--run-dir", "run", "pretrained.path=first", "trainer.epochs=0")

    def test_the_report_is_on_the_terminal_and_in_the_log(self, flambeau: InProcess, first: Path) -> None:
        loose = "pretrained={path: first, strict: false}"
        out = flambeau("train", "tiny", "--run-dir", "run", loose, *HEAD, "trainer.epochs=0").out
        lines = [
            "start  first (checkpoint of step 12, averaged weights): 7 of 9 tensors of the model",
            "  matched         7  body (7)",
            "  other shape     2  head (2)",
        ]
        log = (flambeau.project.root / "run" / "log.txt").read_text()
        assert all(line in out and line in log for line in lines)

    def test_the_record_says_where_the_weights_came_from(self, flambeau: InProcess, first: Path) -> None:
        start_of(flambeau, "pretrained.path=first")
        (record,) = json.loads((flambeau.project.root / "run" / "pretrained.json").read_text())
        file = first / "checkpoints" / "best" / "ema.safetensors"
        assert record["sha256"] == {"ema.safetensors": hashlib.sha256(file.read_bytes()).hexdigest()}
        assert (record["step"], record["weights"], record["matched"]) == (12, "ema", 9)


class TestErrors:
    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ("path: nowhere", "nowhere does not exist"),
            ("path: first, checkpoint: 7", "has no checkpoint of step 7"),
            ("path: first, exclude: [heads]", "'heads' of `exclude` fits no name"),
            ("path: first, into: body", "nothing of first (checkpoint of step 12, averaged weights) fits the model"),
        ],
    )
    def test_it_is_said_before_a_run_folder_is_made(
        self, flambeau: InProcess, first: Path, settings: str, text: str
    ) -> None:
        answer = flambeau("train", "tiny", "--run-dir", "run", f"pretrained={{{settings}}}", expect=2)
        assert text in answer.err and "Traceback" not in answer.err
        assert not (flambeau.project.root / "run").exists()

    def test_another_head_is_refused_with_the_remedy(self, flambeau: InProcess, first: Path) -> None:
        said = flambeau("train", "tiny", "pretrained.path=first", *HEAD, expect=2).err
        assert "'head' gives 3 outputs (classes) there and 5 in the model" in said
        assert "exclude: [head]" in said


class TestAResumedRun:
    def test_it_needs_none_of_what_it_started_from(
        self, flambeau: InProcess, first: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The checkpoint's weights win, and the run ends with the same bits as one that was never stopped."""
        start = "pretrained={path: first}"
        flambeau("train", "tiny", "--run-dir", "straight", start)
        monkeypatch.setenv("PREEMPT_AT", "17")
        flambeau("train", "tiny", "--run-dir", "run", start, expect=75)
        monkeypatch.delenv("PREEMPT_AT")
        shutil.rmtree(first)
        flambeau("resume", "run")
        assert_same_runs(flambeau.project.root / "straight", flambeau.project.root / "run")

    def test_one_that_was_stopped_before_its_first_checkpoint_begins_with_them_again(
        self, flambeau: InProcess, first: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing else would have them: it would go on from random weights, and nobody would see."""
        start = ("pretrained.path=first", "trainer.epochs=2")
        flambeau("train", "tiny", "--run-dir", "straight", *start)
        monkeypatch.setenv("FAIL_AT", "3")
        with pytest.raises(RuntimeError, match="the test's own failure"):
            flambeau("train", "tiny", "--run-dir", "run", *start, expect=None)
        monkeypatch.delenv("FAIL_AT")
        assert not list((flambeau.project.root / "run").glob("checkpoints/step-*"))
        flambeau("resume", "run")
        assert_same_runs(flambeau.project.root / "straight", flambeau.project.root / "run")

    def test_another_start_point_is_refused(self, flambeau: InProcess, first: Path) -> None:
        """It would be silently left out."""
        flambeau("train", "tiny", "--run-dir", "run", "pretrained.path=first", "trainer.epochs=1")
        said = flambeau("resume", "run", "pretrained.path=other", "trainer.epochs=2", expect=2).err
        assert "pretrained.path" in said and "no longer the one that began" in said


def begun(root: Path, overrides: list[str], gone: bool = False) -> dict[str, Any]:
    """The weights of a run of the project before its first step, whole, and what this process could read."""
    from flambeau.distributed.sharding import is_sharded_model
    from flambeau.runtime.world import current_world

    config = load_config("tiny", ["trainer.epochs=0", *overrides])
    if gone and not current_world().is_main:
        config.values["pretrained"]["path"] = "nowhere"
    trainer = build_trainer(config, device="cpu")
    trainer.fit()
    state = trainer.model.state_dict()
    assert is_sharded_model(trainer.model) == any("fsdp" in override for override in overrides)
    whole = {name: item.full_tensor() if hasattr(item, "full_tensor") else item for name, item in state.items()}
    return {name: item.clone() for name, item in whole.items()}


@pytest.mark.parametrize("sharding", ["", "trainer.fsdp={}", "trainer.fsdp={meta_init: true}"])
def test_of_several_processes_rank_0_reads_and_all_have_the_same(
    flambeau: InProcess, first: Path, sharding: str
) -> None:
    """Whole copies, models in pieces, and those that were built without memory; the file need only be at rank 0."""
    if sharding and not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("this torch shards models on accelerators only")
    part = "pretrained={path: first, exclude: [head]}"
    overrides = [part, *([sharding] if sharding else [])]
    alone = begun(flambeau.project.root, [part])
    expected = weights(first, part="ema")
    for found in together(2, begun, flambeau.project.root, overrides, True):
        for name, tensor in found.items():
            assert torch.equal(tensor, alone[name] if name.startswith("head") else expected[name]), name


def test_an_error_of_rank_0_ends_all(flambeau: InProcess) -> None:
    """None waits for what does not come."""
    with pytest.raises(AssertionError, match="nowhere does not exist"):
        together(2, begun, flambeau.project.root, ["pretrained.path=nowhere"], timeout=60)


def test_the_checked_configuration_is_the_one_that_is_written(project: Project, flambeau: InProcess) -> None:
    """`config.yaml` of a run loads to the same start points; names with dots in them are no sections."""
    torch.save({"encoder.weight": torch.zeros(16, 6)}, project.root / "weights.pt")
    rules = 'pretrained={path: weights.pt, map: {"encoder.": "body.0."}, include: [body.0.weight]}'
    flambeau("train", "tiny", "--run-dir", "run", rules, "trainer.epochs=0")
    saved = load_config(str(project.root / "run" / "config.yaml")).values["pretrained"]
    assert saved == {"path": "weights.pt", "map": {"encoder.": "body.0."}, "include": ["body.0.weight"]}
    flambeau("resume", "run", "trainer.epochs=1")
