"""Runs of a model in pieces: killed, resumed at the same and at another number of processes, exported."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint
import torch.distributed.fsdp  # once, for all processes that are forked from this one
from safetensors.torch import load_file
from support.fates import Crew
from support.processes import together
from support.projects import InProcess, Project
from support.states import assert_same, final_state
from torch import nn
from torch.utils.data import TensorDataset

from flambeau import Trainer, load_model
from flambeau.checkpoint import Checkpoint
from flambeau.config.sections import EmaSettings, FsdpSettings, TrainerSettings
from flambeau.data import Batch
from flambeau.distributed.sharding import prepare_model
from flambeau.metrics import Accuracy
from flambeau.runtime.world import current_world

TOLERANCE = 1e-10
"""Largest relative difference of weights in float64: what another order of summation makes."""


def samples(size: int, *, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, 6, generator=generator)
    return TensorDataset(inputs, torch.randint(0, 4, (size,), generator=generator))


class Watched(Trainer):
    """Keeps the ids of the samples of each step, takes its time, and leaves after some steps as on a signal."""

    leave_after = 10**9
    pace = 0.0

    def update(self, batch: Batch) -> None:
        super().update(batch)
        if self.state.step + 1 == self.leave_after:
            self.preempt("a test")
        if self.pace:
            time.sleep(self.pace)
            if self.world.is_main:
                print(f"step {self.state.step}", flush=True)

    def advance(self, batch: Batch) -> None:
        self.ids = [*getattr(self, "ids", []), batch.ids.tolist()]
        super().advance(batch)


def train(
    folder: Path, leave_after: int | None = None, *, dropout: float = 0.0, accumulate: int = 1, pace: float = 0.0
) -> Any:
    """Go on in `folder` with the run that may have begun there; the ids of this process's samples of each step."""
    settings = TrainerSettings(fsdp=FsdpSettings(blocks=["Linear"]), epochs=6, precision="fp64")
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Linear(6, 15, bias=False), nn.BatchNorm1d(15), nn.Tanh(), nn.Dropout(dropout), nn.Linear(15, 4)
    )
    model = prepare_model(net.double(), settings, current_world(), torch.device("cpu"))
    trainer = Watched(
        model, samples(37), nn.CrossEntropyLoss(), torch.optim.AdamW(model.parameters(), lr=1e-2), run_dir=folder,
        val_data=samples(11, seed=2), metrics={"accuracy": Accuracy()}, device="cpu", batch_size=8, settings=settings,
        trackers=(), every_steps=3, progress=False, log_every=7, clip_norm=0.5,
        ema=EmaSettings(decay=0.9), accumulate=accumulate,
    )  # fmt: skip
    trainer.leave_after, trainer.pace = leave_after or 10**9, pace
    trainer.fit(resume=True)
    return getattr(trainer, "ids", [])


def test_a_run_resumed_at_other_numbers_of_processes_goes_on_with_the_same_samples(tmp_path: Path) -> None:
    """2, then 3, then 1: nothing is repeated or lost; weights, average and optimizer are those of one process."""
    whole_ids = train(tmp_path / "whole")
    ids: list[list[int]] = []
    for ranks, leave_after in ((2, 7), (3, 17), (1, None)):
        shares = together(ranks, train, tmp_path / "run", leave_after)
        ids += [[index for share in step for index in share] for step in zip(*shares, strict=True)]
    assert ids == whole_ids
    found, expected = final_state(tmp_path / "run"), final_state(tmp_path / "whole")
    assert found["step"] == expected["step"] == 30
    for part in ("model", "ema"):
        for name, value in expected[part].items():
            assert_close(found[part][name], value)
    for index, moments in expected["optimizer"]["state"].items():
        for name, value in moments.items():
            assert_close(found["optimizer"]["state"][index][name], value)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    difference = (found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-300)
    assert difference <= TOLERANCE


@pytest.mark.slow
def test_a_killed_run_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL to one process, the other ends by itself; dropout, average, clipping and accumulation included."""
    options: dict[str, Any] = {"dropout": 0.2, "accumulate": 2}
    together(2, lambda: train(tmp_path / "whole", **options))
    for kill in range(3):
        crew = Crew(tmp_path, 2, lambda: train(tmp_path / "run", **options, pace=0.03) and None)
        crew.wait_for(0, f"step {8 * kill + 7}")
        crew.kill(kill % 2, signal.SIGKILL)
        fates = crew.fates()
        assert fates[kill % 2].status == -signal.SIGKILL
        assert fates[1 - kill % 2].status != 0
    together(2, lambda: train(tmp_path / "run", **options))
    assert_same(final_state(tmp_path / "run"), final_state(tmp_path / "whole"))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_the_command_line_trains_resumes_measures_and_exports_a_model_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Built without memory, in two processes; what follows runs in one, which shards nothing."""
    project = Project.write(tmp_path / "project")
    options = ("trainer.fsdp={blocks: [Linear], meta_init: true}", "trainer.epochs=2", "checkpoint.keep_last=9")
    project.run("train", "tiny", "-d", "cpu", "--processes", "2", "--run-dir", "pieces", *options)
    project.run("train", "tiny", "-d", "cpu", "--processes", "2", "--run-dir", "copies", *options[1:])
    pieces, copies = project.root / "pieces", project.root / "copies"
    assert sorted(path.name for path in (pieces / "checkpoints" / "last").glob("rank-*")) == [
        "rank-00000.safetensors", "rank-00001.safetensors"
    ]  # fmt: skip
    for name, value in final_state(copies)["model"].items():
        torch.testing.assert_close(final_state(pieces)["model"][name], value, rtol=1e-4, atol=1e-5)

    flambeau = InProcess(project, monkeypatch, capsys)
    last = [json.loads(line) for line in (pieces / "metrics.jsonl").read_text().splitlines()][-1]
    measured = json.loads(flambeau("evaluate", "pieces", "--json", "--checkpoint", "last", "-d", "cpu").out)
    assert measured["scores"]["accuracy"] == last["val/accuracy"]
    for which in ("last", "best", "12"):
        assert flambeau("export", "pieces", "--format", "safetensors", "--output", f"{which}.safetensors",
                        "--checkpoint", which).status == 0  # fmt: skip
        step = Checkpoint.open((pieces / "checkpoints" / which if which != "12" else
                                pieces / "checkpoints" / "step-00000012").resolve())  # fmt: skip
        found = load_file(project.root / f"{which}.safetensors")
        assert_same(found, dict(sorted(step.load("model")["model"].items())))
        model = load_model(pieces, checkpoint=step.step)
        assert_same(dict(model.state_dict()), dict(step.load("model")["model"]))
    assert project.run("resume", "pieces", "-d", "cpu", "trainer.epochs=3", "--force").returncode == 0
    assert final_state(pieces)["step"] == 36
