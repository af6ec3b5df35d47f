"""When memory runs out, the run says what to do, and keeps the batch that was too large."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import together
from support.tasks import make_trainer, points
from torch import Tensor, nn

from flambeau.runtime.world import current_world
from flambeau.training import memory_report


class Greedy(nn.Linear):
    """Runs out of memory at its n-th call, in training or in evaluation."""

    def __init__(self, error: BaseException, *, call: int, training: bool = True) -> None:
        super().__init__(4, 3)
        self.error, self.call, self.for_training, self.calls = error, call, training, 0

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training == self.for_training:
            self.calls += 1
            if self.calls == self.call:
                raise self.error
        return super().forward(inputs)


def fails(model: nn.Module, run_dir: Path | None, **options: Any) -> BaseException:
    options = {"dry_batch": False, "val_data": points(), **options}
    trainer = make_trainer(model, run_dir=run_dir, **options)
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        trainer.fit()
    return caught.value


OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore words")


@pytest.mark.parametrize(
    "error", [OUT, MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")], ids=repr
)
def test_the_batch_and_the_memory_are_kept_and_the_advice_is_in_the_error(error: Any, tmp_path: Path) -> None:
    """The second batch of four: its samples by their places in the dataset, its shapes, the step."""
    found = fails(Greedy(error, call=2), tmp_path / "run")
    assert found is error
    report = json.loads((tmp_path / "run/out-of-memory/rank-0.json").read_text())
    assert (report["step"], report["rank"], report["during"], report["device"]) == (2, 0, "training", "cpu")
    assert report["batch"]["ids"] == list(range(8, 16)) and report["batch"]["size"] == 8
    assert report["batch"]["inputs"] == {"shape": [8, 4], "dtype": "float32", "bytes": 128}
    assert report["memory"]["host_peak"] > 1 << 20
    assert found.__notes__[0].startswith("trainer.micro_batch: auto")
    assert found.__notes__[-1].endswith("out-of-memory/rank-0.json")
    assert "trainer.micro_batch: auto" in (tmp_path / "run/log.txt").read_text()
    assert sorted(path.name for path in (tmp_path / "run/out-of-memory").iterdir()) == ["rank-0.json"]


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({"micro_batch": 4}, "trainer.micro_batch: fewer samples at a time (now 4)"),
        ({"accumulate": 2}, "trainer.micro_batch: fewer samples at a time (now 2 parts of a batch)"),
        ({}, "trainer.micro_batch: auto"),
    ],
    ids=str,
)
def test_the_advice_fits_the_settings(options: Any, first: str, tmp_path: Path) -> None:
    error = torch.OutOfMemoryError("out of memory")
    assert fails(Greedy(error, call=2), tmp_path / "run", **options).__notes__[0].startswith(first)


def test_memory_that_runs_out_in_a_validation_is_told_of_it(tmp_path: Path) -> None:
    error = torch.OutOfMemoryError("out of memory")
    found = fails(Greedy(error, call=2, training=False), tmp_path / "run", eval_batch_size=6)
    report = json.loads((tmp_path / "run/out-of-memory/rank-0.json").read_text())
    assert (report["during"], report["batch"]["ids"]) == ("evaluation", list(range(6, 12)))
    assert found.__notes__[0] == "data.eval_batch_size: fewer samples at a time in evaluation (now 6)"


@pytest.mark.parametrize(("training", "during"), [(True, "training"), (False, "validation")])
def test_it_is_so_in_the_dry_batch_too(training: bool, during: str, tmp_path: Path) -> None:
    fails(Greedy(OUT, call=1, training=training), tmp_path / "run", dry_batch=True)
    report = json.loads((tmp_path / "run/out-of-memory/rank-0.json").read_text())
    assert report["during"] == f"{during} (the dry batch)" and report["batch"]["ids"][0] == 0


def test_without_a_run_folder_there_is_the_advice_alone() -> None:
    error = torch.OutOfMemoryError("out of memory")
    assert len(fails(Greedy(error, call=2), None).__notes__) == 2


def test_another_error_is_left_as_it_is(tmp_path: Path) -> None:
    error = RuntimeError("shapes do not fit")
    found = fails(Greedy(error, call=2), tmp_path / "run")
    assert not hasattr(found, "__notes__") and not (tmp_path / "run/out-of-memory").exists()


def test_a_disk_that_is_full_hides_nothing(tmp_path: Path) -> None:
    class Blocked(Greedy):
        def forward(self, inputs: Tensor) -> Tensor:
            (tmp_path / "run/out-of-memory").write_text("in the way")
            return super().forward(inputs)

    error = torch.OutOfMemoryError("out of memory")
    assert fails(Blocked(error, call=2), tmp_path / "run") is error


@pytest.mark.parametrize("has_snapshots", [True, False])
def test_on_an_accelerator_the_summary_and_the_snapshot_are_kept(
    has_snapshots: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot only where this torch writes one. (Torch's own functions are stood in for: there is no device.)"""
    monkeypatch.setattr(torch.cuda, "memory_summary", lambda device: f"the memory of {device}")
    if has_snapshots:
        monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: Path(path).write_bytes(b"a pickle"))
    else:
        monkeypatch.delattr(torch.cuda.memory, "_dump_snapshot")
    memory_report._keep_device_memory(torch.device("cuda:1"), tmp_path / "rank-0")
    assert (tmp_path / "rank-0.txt").read_text() == "the memory of cuda:1"
    assert (tmp_path / "rank-0.pickle").exists() is has_snapshots


@pytest.mark.gpu
def test_memory_of_a_real_device_that_runs_out_is_described(tmp_path: Path) -> None:
    class Huge(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            torch.empty(1 << 50, device=inputs.device)
            return super().forward(inputs)

    fails(Huge(4, 3).cuda(), tmp_path / "run", device="0")
    report = json.loads((tmp_path / "run/out-of-memory/rank-0.json").read_text())
    assert report["memory"]["device_total"] > 0 and report["device"].startswith("cuda")
    assert "trainer.precision: bf16" in " ".join(report["advice"])
    assert {path.suffix for path in (tmp_path / "run/out-of-memory").iterdir()} >= {".json", ".txt"}


def runs_out(folder: str) -> str:
    """Rank 1 runs out of memory in its second step; what each process fails of."""
    model = Greedy(torch.OutOfMemoryError("out of memory"), call=2 if current_world().rank == 1 else -1)
    try:
        make_trainer(model, run_dir=folder, dry_batch=False).fit()
    except Exception as error:
        return type(error).__name__
    return "well"


@pytest.mark.slow
def test_the_process_that_runs_out_writes_its_own_report(tmp_path: Path) -> None:
    """The others fail only as its echo, and write none."""
    first, second = together(2, runs_out, str(tmp_path / "run"))
    assert second == "OutOfMemoryError" and first != "well"
    assert [path.name for path in (tmp_path / "run/out-of-memory").iterdir()] == ["rank-1.json"]
    report = json.loads((tmp_path / "run/out-of-memory/rank-1.json").read_text())
    assert report["rank"] == 1 and report["batch"]["global_size"] == 8 and report["batch"]["size"] == 4
