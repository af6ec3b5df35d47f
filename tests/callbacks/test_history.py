"""`history`: the scores of a run as a table, the same bytes whatever the run went through."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from support.processes import together
from support.projects import InProcess
from support.tasks import make_trainer, points

from flambeau.callbacks import History
from flambeau.run_folder import read_metrics


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class TestHistory:
    def test_it_has_a_row_a_validation_with_the_scores_of_the_record(self, flambeau: InProcess) -> None:
        flambeau("train", "tiny", "--run-dir", "run", "callbacks.history={}", "trainer.epochs=2")
        run = flambeau.project.root / "run"
        rows = table(run / "history.csv")
        scored = [record for record in read_metrics(run / "metrics.jsonl") if "val/loss" in record]
        assert [int(row["step"]) for row in rows] == [record["step"] for record in scored] == [12, 24]
        for row, record in zip(rows, scored, strict=True):
            assert {key: float(row[key]) for key in record} == record
        trained = {record["step"]: record for record in read_metrics(run / "metrics.jsonl") if "train/loss" in record}
        assert [float(row["train/loss"]) for row in rows] == [trained[10]["train/loss"], trained[24]["train/loss"]]
        assert list(rows[0])[:3] == ["step", "epoch", "samples"]

    def test_before_the_first_training_record_its_cells_are_empty(self, tmp_path: Path) -> None:
        make_trainer(epochs=2, val_data=points(), log_every=5, callbacks=[History()], run_dir=tmp_path / "run").fit()
        first, last = table(tmp_path / "run/history.csv")
        assert (first["step"], first["train/loss"], last["step"]) == ("3", "", "6")
        assert float(last["train/loss"]) > 0

    def test_it_can_have_a_row_for_each_training_record_too(self, tmp_path: Path) -> None:
        """Every k samples: `log_every` steps of a batch."""
        history = History(rows="log")
        make_trainer(epochs=2, val_data=points(), log_every=2, callbacks=[history], run_dir=tmp_path / "run").fit()
        rows = table(tmp_path / "run/history.csv")
        assert [(row["step"], row["samples"], bool(row["val/loss"])) for row in rows] == [
            ("2", "16", False),
            ("3", "", True),
            ("4", "28", False),
            ("6", "40", True),
        ]

    @pytest.mark.parametrize(("at", "rows"), [("1", "log"), ("14", "validation"), ("47", "log")])
    def test_a_resumed_run_writes_the_same_bytes(
        self, at: str, rows: str, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = [f"callbacks.history={{rows: {rows}}}", "trainer.validate_every_steps=7"]
        flambeau("train", "tiny", "--run-dir", "whole", *settings)
        monkeypatch.setenv("PREEMPT_AT", at)
        flambeau("train", "tiny", "--run-dir", "parts", *settings, expect=75)
        monkeypatch.delenv("PREEMPT_AT")
        flambeau("resume", "parts")
        root = flambeau.project.root
        assert (root / "parts/history.csv").read_bytes() == (root / "whole/history.csv").read_bytes()

    def test_a_run_that_failed_after_its_checkpoint_does_too(
        self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Rows of the time after the checkpoint are taken back."""
        settings = ["callbacks.history={}", "trainer.validate_every_steps=7", "checkpoint.keep_best=0"]
        flambeau("train", "tiny", "--run-dir", "whole", *settings)
        monkeypatch.setenv("FAIL_AT", "23")
        with pytest.raises(RuntimeError, match="the test's own"):
            flambeau("train", "tiny", "--run-dir", "parts", *settings, expect=None)
        monkeypatch.setenv("FAIL_AT", "13")  # at once: the checkpoint is of step 12
        with pytest.raises(RuntimeError, match="the test's own"):
            flambeau("resume", "parts", expect=None)
        root = flambeau.project.root
        assert [row["step"] for row in table(root / "parts/history.csv")] == ["7"]
        monkeypatch.delenv("FAIL_AT")
        flambeau("resume", "parts")
        assert (root / "parts/history.csv").read_bytes() == (root / "whole/history.csv").read_bytes()

    def test_a_run_that_gets_it_later_has_the_rows_from_before(self, flambeau: InProcess) -> None:
        flambeau("train", "tiny", "--run-dir", "whole", "callbacks.history={}", "scheduler=null")
        flambeau("train", "tiny", "--run-dir", "run", "trainer.epochs=2", "scheduler=null")
        flambeau("resume", "run", "callbacks.history={}", "trainer.epochs=4", "--force")
        root = flambeau.project.root
        rows, whole = table(root / "run/history.csv"), table(root / "whole/history.csv")
        assert [row["val/loss"] for row in rows] == [row["val/loss"] for row in whole]

    def test_a_column_that_appears_later_stands_at_the_right(self, tmp_path: Path) -> None:
        from flambeau.callbacks.history import Table

        whole = Table(each_record=False)
        records: list[Any] = [
            {"step": 1, "epoch": 1, "val/loss": 0.5},
            {"step": 2, "epoch": 1, "samples": 9, "train/loss": 0.5, "lr": 0.1},
            {"step": 2, "epoch": 1, "val/loss": 0.25},
            {"step": 2, "epoch": 1, "test/loss": 9.0},
        ]
        whole.add(records)
        assert whole.to_csv() == "step,epoch,samples,val/loss,lr,train/loss\n1,1,,0.5,,\n2,1,9,0.25,0.1,0.5\n"

    def test_of_several_processes_one_writes_it(self, tmp_path: Path) -> None:
        make_trainer(epochs=2, val_data=points(), callbacks=[History()], run_dir=tmp_path / "alone").fit()
        together(2, train_with_history, tmp_path / "run")
        alone, both = table(tmp_path / "alone/history.csv"), table(tmp_path / "run/history.csv")
        assert [row["step"] for row in both] == [row["step"] for row in alone]
        assert [float(row["val/loss"]) for row in both] == pytest.approx([float(row["val/loss"]) for row in alone])


def train_with_history(run_dir: Path) -> None:
    make_trainer(epochs=2, val_data=points(), callbacks=[History()], run_dir=run_dir).fit()
