"""A shortened run is marked as one, and a fault in a backward pass is led back to its place."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support.projects import InProcess
from support.tasks import make_trainer
from torch import Tensor, nn


def test_a_shortened_run_cannot_be_taken_for_a_real_one(flambeau: InProcess) -> None:
    """Its folder's name, its status, the listing and its last words say so."""
    answer = flambeau("train", "tiny", "trainer.debug=one_batch")
    (folder,) = Path("runs/tiny").iterdir()
    assert folder.name.startswith("debug_")
    assert json.loads((folder / "status.json").read_text())["debug"] == "one_batch"
    assert "done (one_batch: no result to keep)" in answer.out
    assert "tiny (one_batch)" in flambeau("runs").out
    assert json.loads(flambeau("runs", "--json").out)[0]["debug"] == "one_batch"


def test_a_run_of_full_length_bears_no_such_mark(flambeau: InProcess) -> None:
    flambeau("train", "tiny", "trainer.epochs=1")
    (folder,) = Path("runs/tiny").iterdir()
    assert "debug" not in folder.name
    assert json.loads((folder / "status.json").read_text())["debug"] is None


def test_a_folder_of_one_s_own_keeps_its_name_and_has_the_mark_in_its_status(flambeau: InProcess) -> None:
    flambeau("train", "tiny", "trainer.debug=few_batches", "--run-dir", "mine")
    assert json.loads(Path("mine/status.json").read_text())["debug"] == "few_batches"


class NanBehind(torch.autograd.Function):
    """The identity, whose gradient is not a number."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * float("nan")


class Faulty(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(NanBehind.apply(self.first(inputs)))  # type: ignore[no-untyped-call, no-any-return]


def test_detect_anomaly_names_the_operation_whose_gradient_is_nan() -> None:
    """The line of the forward pass is in the warning that torch gives; afterwards the mode is off again."""
    with warnings.catch_warnings(record=True) as caught, pytest.raises(RuntimeError, match="NanBehindBackward"):
        warnings.simplefilter("always")
        make_trainer(Faulty(), detect_anomaly=True, dry_batch=False).fit()
    assert any("NanBehind.apply" in str(warning.message) for warning in caught)
    assert not torch.is_anomaly_enabled()
