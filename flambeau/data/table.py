"""Tables of numbers and categories: CSV and Parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from annotated_types import Interval

from flambeau.data.in_memory import ArrayDataset
from flambeau.data.module import DataModule
from flambeau.data.splits import split
from flambeau.data.table_columns import Categories, Numbers, Policies, fit_columns, fit_targets
from flambeau.data.table_files import Column, Table, TableFormat, column_names, find_table_files, read_table
from flambeau.errors import UsageError
from flambeau.registry import register

Rows = npt.NDArray[np.int64]


@register.data("table")
class TableFiles(DataModule):
    """Tables from CSV or Parquet files, one row a sample; everything is fitted to the training rows alone.

    Args:
        train: the file of the training rows, several, or a glob (`data/*.csv`).
        val: files of the validation rows; without them, a part of the training rows is held out if `val_fraction` is
            above 0.
        test: likewise for the test.
        targets: the column to predict, or several; null if there is none.
        inputs: columns, by name or shell pattern (`sensor_*`); default: all but the targets and `exclude`.
        exclude: columns that are no inputs, likewise.
        task: `classification` or `regression`; needed where the target holds whole numbers. Text and truth values are
            classes, other numbers a regression.
        categorical: columns of numbers that are categories, by name or pattern. Columns of text always are.
        encoding: `one_hot`: inputs are one tensor (num_features,), a category as many numbers as it has values.
            `codes`: inputs are `{"numbers": float (n,), "categories": int64 (m,)}`, for embeddings; `cardinalities`
            says how many there are.
        missing: values that are missing in an input: `error`; `mean` or `median` of the training rows (a category of
            its own in categorical columns); `drop` leaves the row out. A missing target is always an error, but for
            `drop`.
        unknown: a category that no training row has: `error`, or `own`, a category of its own.
        standardize: give each column of numbers mean 0 and standard deviation 1 in the training rows.
        scale_targets: likewise for the targets of a regression; `target_mean` and `target_scale` lead back.
        val_fraction: share of the training rows for validation, if `val` is not given.
        test_fraction: likewise for the test.
        stratified: hold out the same share of each class.
        delimiter: what stands between the values of a CSV file.
        file_encoding: how CSV files are written.
        missing_values: what stands for a missing value in a CSV file.
        seed: what the split is a function of.

    Targets are int64 class indices, or float32 (number of targets,).
    """

    num_features: int
    num_classes: int
    num_targets: int
    class_names: list[str]
    feature_names: list[str]
    """Of the inputs' numbers, in order."""
    cardinalities: list[int]
    """Of each categorical column, its categories, with those for missing and unknown values."""
    target_mean: float | list[float]
    """Of the training targets of a regression; a list, if there are several."""
    target_std: float | list[float]
    target_scale: float | list[float]
    """What a scaled target is to be multiplied by, before `target_mean` is added: their standard deviation."""

    def __init__(
        self,
        train: str | Sequence[str],
        val: str | Sequence[str] | None = None,
        test: str | Sequence[str] | None = None,
        targets: str | Sequence[str] | None = None,
        inputs: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        task: Literal["classification", "regression"] | None = None,
        categorical: Sequence[str] = (),
        encoding: Literal["one_hot", "codes"] = "one_hot",
        missing: Literal["error", "mean", "median", "drop"] = "error",
        unknown: Literal["error", "own"] = "error",
        standardize: bool = True,
        scale_targets: bool = True,
        val_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.15,
        test_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.15,
        stratified: bool = False,
        delimiter: str = ",",
        file_encoding: str = "utf-8",
        missing_values: Sequence[str] = ("", "NA", "NaN", "nan", "null"),
        seed: int = 0,
    ) -> None:
        if len(delimiter) != 1:
            raise UsageError(f"data.delimiter is one character, not {delimiter!r}", remedy='for tabulators write "\\t"')
        form = TableFormat(delimiter, file_encoding, tuple(missing_values))
        files = find_table_files(train, "data.train")
        tables = {"train": read_table(files, form)}
        for part, given in (("val", val), ("test", test)):
            if given is not None:
                tables[part] = read_table(find_table_files(given, f"data.{part}"), form, tables["train"])
        has = list(tables["train"])
        targets = [targets] if isinstance(targets, str) else list(targets or ())
        answers = column_names(targets, has, "data.targets", files[0])
        left_out = {*answers, *column_names(exclude, has, "data.exclude", files[0])}
        if inputs is not None and (both := set(column_names(inputs, has, "data.inputs", files[0])) & set(answers)):
            raise UsageError(f"data.inputs: '{min(both)}' is a target, which the model would then see")
        asked = has if inputs is None else column_names(inputs, has, "data.inputs", files[0])
        features = [name for name in asked if name not in left_out]
        if not features:
            raise UsageError("data: no column is left for the inputs", remedy="see data.inputs and data.exclude")
        tables = {
            part: {name: _find(table, name, part) for name in [*features, *answers]} for part, table in tables.items()
        }
        if missing == "drop":
            tables = {part: _without_missing(table, part) for part, table in tables.items()}

        whole = tables["train"]
        size = len(next(iter(whole.values())).values)
        cut = (0.0 if "val" in tables else val_fraction, 0.0 if "test" in tables else test_fraction)
        labels = _labels(whole, answers) if stratified else None
        train_rows, val_rows, test_rows = split(size, cut, seed, labels=labels)
        policies = Policies(missing, unknown, standardize)
        numeric = column_names(categorical, features, "data.categorical", files[0])
        fitted = fit_columns([whole[name].take(train_rows) for name in features], numeric, policies)
        target = fit_targets([whole[name].take(train_rows) for name in answers], task, scale=scale_targets)

        def dataset(table: Table, rows: Rows | None, part: str) -> ArrayDataset:
            taken = table if rows is None else {name: column.take(rows) for name, column in table.items()}
            encoded = _encode(fitted, taken, encoding, part)
            return ArrayDataset(
                encoded, None if target is None else target.encode([taken[name] for name in answers], part)
            )

        self.train = dataset(whole, train_rows, "training")
        self.val = self._part("val", tables, val_rows, dataset)
        self.test = self._part("test", tables, test_rows, dataset)
        self.feature_names = [name for column in fitted for name in column.feature_names(encoding == "one_hot")]
        self.num_features = len(self.feature_names)
        self.cardinalities = [column.size for column in fitted if isinstance(column, Categories)]
        for name, value in (target.offers() if target is not None else {}).items():
            setattr(self, name, value)

    @staticmethod
    def _part(part: str, tables: dict[str, Table], rows: Rows, dataset: Any) -> ArrayDataset | None:
        word = {"val": "validation", "test": "test"}[part]
        if part in tables:
            return dataset(tables[part], None, word)  # type: ignore[no-any-return]
        return dataset(tables["train"], rows, word) if len(rows) else None


def _find(table: Table, name: str, part: str) -> Column:
    if name not in table:
        raise UsageError(f"data.{part}: the files have no column '{name}', which the training files have")
    column = table[name]
    if column.kind == "other":
        raise UsageError(
            f"{column.detail}, which is neither a number nor text", remedy="leave it out with data.exclude"
        )
    return column


def _without_missing(table: Table, part: str) -> Table:
    gone = np.any([column.missing for column in table.values()], axis=0)
    if gone.all():
        raise UsageError(f"data.missing: every row of the {part} files has a missing value")
    kept = np.flatnonzero(~gone)
    return {name: column.take(kept) for name, column in table.items()}


def _labels(table: Table, answers: list[str]) -> npt.NDArray[Any]:
    if len(answers) != 1 or table[answers[0]].kind == "number":
        raise UsageError("data.stratified needs one target that is a class")
    column = table[answers[0]]
    return np.where(column.missing, "", column.values.astype(str)) if column.kind == "text" else column.values


def _encode(fitted: Sequence[Numbers | Categories], table: Table, encoding: str, part: str) -> Any:
    if encoding == "one_hot":
        pieces = [column.one_hot(table[column.name], part) for column in fitted]
        return torch.from_numpy(np.concatenate(pieces, axis=1))
    numbers = [column.one_hot(table[column.name], part) for column in fitted if isinstance(column, Numbers)]
    codes = [column.codes(table[column.name], part) for column in fitted if isinstance(column, Categories)]
    rows = len(next(iter(table.values())).values)
    joined = np.concatenate(numbers, axis=1) if numbers else np.empty((rows, 0), dtype=np.float32)
    stacked = np.stack(codes, axis=1) if codes else np.empty((rows, 0), dtype=np.int64)
    return {"numbers": torch.from_numpy(joined), "categories": torch.from_numpy(stacked)}
