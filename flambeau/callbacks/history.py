"""The scores of a run as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from flambeau.errors import UsageError
from flambeau.registry import register
from flambeau.run_folder import read_metrics
from flambeau.run_folder.atomic import write_atomically
from flambeau.training.callback import Callback
from flambeau.training.trainer import Trainer

FIRST = ("step", "epoch", "samples")
"""The columns that come first; the others follow in the order in which they appeared, those of a record by name."""


@register.callback("history")
class History(Callback):
    """Write `history.csv` into the run folder: a row a validation, for spreadsheets and scripts that plot it.

    A row has the scores of the validation and the last training record before it (its means are over the steps since
    the one before that: see `trainer.log_every`). A cell without a value is empty. The table is made from
    `metrics.jsonl`, so a resumed run writes the same bytes as one that never stopped, and it is replaced in one
    instant. `flambeau.load_run(RUN).columns()` gives such columns without it.

    Args:
        rows: `validation` for a row a validation, `log` for one a training record too.
    """

    def __init__(self, rows: Literal["validation", "log"] = "validation") -> None:
        self.rows = rows
        self._table = Table(each_record=rows == "log")
        self._read = 0

    def on_setup(self, trainer: Trainer) -> None:
        if self.rows == "validation" and trainer.val_data is None:
            raise UsageError("callback history: there is no validation data", remedy="rows: log")

    def on_fit_start(self, trainer: Trainer) -> None:
        """Begin, or begin again, with what the record holds."""
        self._table = Table(each_record=self.rows == "log")
        self._read = len(trainer.recorder.history)
        if (path := self._path(trainer)) is None:
            return
        assert trainer.run_folder is not None
        if trainer.run_folder.metrics_file.exists():
            trainer.recorder.flush()
            self._table.add(read_metrics(trainer.run_folder.metrics_file))
        if self._table.rows or path.exists():
            self._write(path)

    def on_log(self, trainer: Trainer, record: Mapping[str, float]) -> None:
        if self.rows == "log":
            self._update(trainer)

    def on_validation_end(self, trainer: Trainer, scores: Mapping[str, float]) -> None:
        self._update(trainer)

    def _update(self, trainer: Trainer) -> None:
        if (path := self._path(trainer)) is None:
            return
        self._table.add(trainer.recorder.history[self._read :])
        self._read = len(trainer.recorder.history)
        self._write(path)

    def _path(self, trainer: Trainer) -> Path | None:
        """Where the table lies; None in a process that keeps no record."""
        if trainer.run_folder is None or not trainer.world.is_main:
            return None
        return trainer.run_folder.path / "history.csv"

    def _write(self, path: Path) -> None:
        write_atomically(path, self._table.to_csv(), durable=False)


class Table:
    """Rows made from records.

    Args:
        each_record: a row for every training record too.
    """

    def __init__(self, *, each_record: bool) -> None:
        self.columns: list[str] = [*FIRST]
        self.rows: list[dict[str, Any]] = []
        self._each_record = each_record
        self._training: dict[str, Any] = {}

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take in records in the order in which they were written."""
        for record in records:
            is_validation = any(key.startswith("val/") for key in record)
            if not is_validation and not any(key.startswith("train/") for key in record):
                continue  # of a test
            if is_validation and self.rows and self.rows[-1]["step"] == record["step"]:
                self.rows[-1].update(record)  # the training record of the same step has made the row
            elif is_validation or self._each_record:
                self.rows.append({**self._before(record), **record})
            if not is_validation:
                self._training = dict(record)
            new = set(self.rows[-1]) - set(self.columns) if self.rows else ()
            self.columns += sorted(new)

    def _before(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """What a row has of the training record before it."""
        if self._each_record:
            return {}
        same_step = self._training.get("step") == record["step"]
        return {key: value for key, value in self._training.items() if same_step or key != "samples"}

    def to_csv(self) -> str:
        """The table as text; numbers in their shortest exact form."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()
