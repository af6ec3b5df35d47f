"""The table of a model, from any inputs, and without a trace."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from support.projects import InProcess, Project
from support.tasks import linear, make_trainer, points, weights
from torch import Tensor, nn

from flambeau.insight import model_summary


class Named(nn.Module):
    """Takes a nested dict, and counts its calls in a buffer."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)
        self.head.bias.requires_grad_(False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: dict[str, Any]) -> Tensor:
        self.calls += 1
        drawn = torch.rand(())
        return self.head(self.norm(self.embedding(inputs["tokens"]["ids"]).mean(dim=1))) + 0 * drawn  # type: ignore[no-any-return]


INPUTS = {"tokens": {"ids": torch.ones(2, 5, dtype=torch.int64)}, "names": ["a", "b"]}


@pytest.fixture
def torchinfo() -> Any:
    return pytest.importorskip("torchinfo", reason="the extra 'summary'")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project.write(tmp_path / "project")


@pytest.fixture
def flambeau(project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    return InProcess(project, monkeypatch, capsys)


def test_it_holds_layers_shapes_and_parameters_of_a_model_that_takes_a_dict(torchinfo: Any) -> None:
    text = model_summary(Named(), INPUTS)
    assert "Embedding (embedding)" in text and "[2, 5, 4]" in text and "Linear (head)" in text and "[2, 3]" in text
    assert "Total params: 63" in text and "Trainable params: 60" in text


def test_modes_of_modules_stay_as_they_were(torchinfo: Any) -> None:
    """Each by itself: torchinfo would give all of them the mode of the first."""
    model = Named().train()
    model.norm.eval()
    model_summary(model, INPUTS)
    assert "forward" not in vars(model)
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert model.norm.num_batches_tracked == 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_model_is_not_kept(torchinfo: Any) -> None:
    model = Named()
    model_summary(model, INPUTS)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_model_that_cannot_be_called_so_is_counted_and_the_reason_is_said(torchinfo: Any) -> None:
    text = model_summary(Named(), {"other": torch.zeros(2, 5)})
    assert "embedding (Embedding)" in text and "(without shapes: KeyError: 'tokens')" in text


def test_without_torchinfo_parameters_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the extra that shows more is named."""
    monkeypatch.setitem(sys.modules, "torchinfo", None)
    assert model_summary(Named(), INPUTS).splitlines() == [
        "module                   parameters  trained",
        "Named                            63       60",
        "  embedding (Embedding)          40       40",
        "  norm (BatchNorm1d)              8        8",
        "  head (Linear)                  15       12",
        "(with shapes: pip install 'flambeau[summary]')",
    ]


def test_depth_limits_the_levels() -> None:
    model = nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(2, 2))))
    assert [line.split()[0] for line in model_summary(model, depth=2).splitlines()] == [
        "module",
        "Sequential",
        "0",
        "0.0",
    ]


def test_sizes_that_the_first_batch_decides_are_not_known() -> None:
    text = model_summary(nn.Sequential(nn.LazyLinear(3)), torch.zeros(2, 4))
    assert text.splitlines()[1].split() == ["Sequential", "?", "?"]


class TestInARun:
    def test_it_is_in_the_log_of_every_run_and_its_size_on_the_terminal(self, flambeau: InProcess) -> None:
        answer = flambeau("train", "tiny", "trainer.epochs=1", "--run-dir", "run")
        log = Path("run/log.txt").read_text()
        assert "Total params: 195" in log and "[2, 16]" in log
        assert "DropNet: 195 parameters" in answer.out and "Total params" not in answer.out

    def test_a_depth_shows_it_on_the_terminal_and_0_leaves_it_out(self, flambeau: InProcess) -> None:
        shown = flambeau("train", "tiny", "trainer.epochs=1", "trainer.summary=1", "--run-dir", "one").out
        assert "BatchNorm1d" not in shown and "Sequential" in shown
        flambeau("train", "tiny", "trainer.epochs=1", "trainer.summary=0", "--run-dir", "none")
        assert "Sequential" not in Path("none/log.txt").read_text()

    @pytest.mark.parametrize("options", [{}, {"dry_batch": False}], ids=["dry batch", "none"])
    def test_a_run_trains_to_the_same_bits_with_and_without(self, options: Any, tmp_path: Path) -> None:
        """Batch norm's statistics, generators, and buffers that a forward pass writes included."""

        class Counting(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm, self.drop, self.linear = nn.BatchNorm1d(4), nn.Dropout(0.5), linear()
                self.register_buffer("seen", torch.zeros(()))

            def forward(self, inputs: Tensor) -> Tensor:
                self.seen = self.seen + torch.rand(()) + len(inputs)
                return self.linear(self.drop(self.norm(inputs)))  # type: ignore[no-any-return]

        found = []
        for summary in (0, 3, None):
            trainer = make_trainer(
                Counting(), val_data=points(), epochs=2, summary=summary, run_dir=tmp_path / str(summary), **options
            )
            trainer.fit()
            found.append(torch.cat([weights(trainer.model), *(b.flatten().float() for b in trainer.model.buffers())]))
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])

    def test_a_trainer_whose_model_is_called_otherwise_runs_all_the_same(self, tmp_path: Path) -> None:
        from flambeau import Batch, Trainer

        class Pair(nn.Linear):
            def forward(self, inputs: Tensor, scale: float) -> Tensor:  # type: ignore[override]
                return super().forward(inputs) * scale

        class Scaled(Trainer):
            def training_step(self, batch: Batch) -> Tensor:
                return self.compute_loss(self.forward(batch.inputs, 2.0), batch)

        make_trainer(Pair(4, 3), kind=Scaled, run_dir=tmp_path / "run").fit()
        assert "(without shapes: " in (tmp_path / "run/log.txt").read_text()
