"""What is learned of the columns of a table from its training rows, and how any row is encoded by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch

from flambeau.data.table_files import Column
from flambeau.errors import UsageError

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Policies:
    """What is done with what is missing or unknown, and with the scale of numbers."""

    missing: str
    unknown: str
    standardize: bool


@dataclass(frozen=True)
class Numbers:
    """A column of numbers: what is taken away from it, and what it is divided by."""

    name: str
    mean: float
    std: float
    fill: float | None

    def one_hot(self, column: Column, part: str) -> Floats:
        """The numbers as one column, float32 (rows, 1)."""
        values = column.values
        if column.missing.any():
            if self.fill is None:
                _refuse_missing(column, part)
            values = np.where(column.missing, self.fill, values)
        return ((values - self.mean) / self.std).astype(np.float32)[:, None]

    def feature_names(self, one_hot: bool) -> list[str]:
        return [self.name]


@dataclass(frozen=True)
class Categories:
    """A column of categories: their codes; one more for what is missing, one for what is unknown, if these may be."""

    name: str
    known: dict[Any, int]
    missing_code: int | None
    unknown_code: int | None

    @property
    def size(self) -> int:
        return len(self.known) + (self.missing_code is not None) + (self.unknown_code is not None)

    def codes(self, column: Column, part: str) -> Codes:
        """The code of each row, int64."""
        missing = column.missing
        if missing.any() and self.missing_code is None:
            _refuse_missing(column, part)
        values = column.values.tolist()
        found = [
            self.missing_code if absent else self.known.get(value, self.unknown_code)
            for value, absent in zip(values, missing.tolist(), strict=True)
        ]
        if None in found:
            unknown = sorted({_shown(value) for value, code in zip(values, found, strict=True) if code is None})
            raise UsageError(
                f"the column '{self.name}' of the {part} rows has categories that no training row has: "
                f"{', '.join(unknown[:5])}{' ...' if len(unknown) > 5 else ''}",
                remedy="data.unknown: own makes them a category of their own",
            )
        return np.array(found, dtype=np.int64)

    def one_hot(self, column: Column, part: str) -> Floats:
        """One number a category, float32 (rows, size): 1 for the row's own, else 0."""
        return np.eye(self.size, dtype=np.float32)[self.codes(column, part)]

    def feature_names(self, one_hot: bool) -> list[str]:
        if not one_hot:
            return []
        names = [_shown(value) for value in self.known]
        names += ["missing"] if self.missing_code is not None else []
        names += ["unknown"] if self.unknown_code is not None else []
        return [f"{self.name}={name}" for name in names]


def fit_columns(
    columns: Sequence[Column], categorical: Sequence[str], policies: Policies
) -> list[Numbers | Categories]:
    """Learn each column from its training rows.

    Raises:
        UsageError: a value is missing, where that is an error.
    """
    fitted: list[Numbers | Categories] = []
    for column in columns:
        if column.kind == "text" or column.name in categorical:
            fitted.append(_categories(column, policies))
        else:
            fitted.append(_numbers(column, policies))
    return fitted


def _categories(column: Column, policies: Policies) -> Categories:
    if column.missing.any() and policies.missing == "error":
        _refuse_missing(column, "training")
    values = sorted(set(column.values[~column.missing].tolist()))
    known = {value: code for code, value in enumerate(values)}
    may_miss = policies.missing in ("mean", "median")
    missing_code = len(known) if may_miss else None
    unknown_code = len(known) + may_miss if policies.unknown == "own" else None
    return Categories(column.name, known, missing_code, unknown_code)


def _numbers(column: Column, policies: Policies) -> Numbers:
    given = column.values[~column.missing]
    if len(given) < len(column.values) and policies.missing == "error":
        _refuse_missing(column, "training")
    if not np.isfinite(given).all():
        raise UsageError(f"the column '{column.name}' holds a number that is not finite")
    if not len(given):
        raise UsageError(f"the column '{column.name}' has no value in the training rows", remedy="see data.exclude")
    fill = None
    if policies.missing in ("mean", "median"):
        fill = float(given.mean() if policies.missing == "mean" else np.median(given))
    mean, std = 0.0, 1.0
    if policies.standardize and column.kind != "boolean":
        mean, std = float(given.mean()), float(given.std())
    return Numbers(column.name, mean, std if std > 0 else 1.0, fill)


class Classes:
    """A target that is a class: the codes of the training rows' classes, in order."""

    def __init__(self, column: Column) -> None:
        _refuse_missing_target(column, "training")
        self.known = {value: code for code, value in enumerate(sorted(set(column.values.tolist())))}
        self.kind = column.kind

    def encode(self, columns: Sequence[Column], part: str) -> torch.Tensor:
        (column,) = columns
        _refuse_missing_target(column, part)
        unknown = sorted({_shown(value) for value in column.values.tolist() if value not in self.known})
        if unknown:
            found = f"the target '{column.name}' of the {part} rows has classes that no training row has"
            raise UsageError(f"{found}: {', '.join(unknown[:5])}")
        return torch.tensor([self.known[value] for value in column.values.tolist()], dtype=torch.int64)

    def offers(self) -> dict[str, Any]:
        if self.kind == "boolean":
            names = ["true" if value else "false" for value in self.known]
        else:
            names = [_shown(value) for value in self.known]
        return {"class_names": names, "num_classes": len(names)}


class Amounts:
    """Targets that are numbers: what is taken away from them, and what they are divided by."""

    def __init__(self, columns: Sequence[Column], *, scale: bool) -> None:
        values = self._values(columns, "training")
        self.mean, std = values.mean(axis=0), values.std(axis=0)
        self.std = np.where(std > 0, std, 1.0)
        self.scale = scale

    @staticmethod
    def _values(columns: Sequence[Column], part: str) -> npt.NDArray[np.float64]:
        for column in columns:
            _refuse_missing_target(column, part)
        return np.stack([column.values for column in columns], axis=1)

    def encode(self, columns: Sequence[Column], part: str) -> torch.Tensor:
        values = self._values(columns, part)
        if self.scale:
            values = (values - self.mean) / self.std
        return torch.from_numpy(values.astype(np.float32))

    def offers(self) -> dict[str, Any]:
        one = len(self.mean) == 1
        mean, std = (value.item() if one else value.tolist() for value in (self.mean, self.std))
        found = {"num_targets": len(self.mean), "target_mean": mean, "target_std": std}
        return {**found, "target_scale": std} if self.scale else found


def fit_targets(columns: Sequence[Column], task: str | None, *, scale: bool) -> Classes | Amounts | None:
    """Learn the targets from the training rows; None if there are none.

    Raises:
        UsageError: it does not show what is to be predicted, or it cannot be.
    """
    if not columns:
        return None
    kinds = {column.kind for column in columns}
    names = ", ".join(column.name for column in columns)
    if task is None:
        if "whole" in kinds:
            raise UsageError(
                f"data.targets: '{names}' holds whole numbers, which can be classes or amounts",
                remedy="say with data.task: classification or regression",
            )
        task = "regression" if kinds == {"number"} else "classification"
    if task == "regression":
        if "text" in kinds:
            raise UsageError(f"data.task: the target '{names}' is text, of which there is no regression")
        return Amounts(columns, scale=scale)
    if len(columns) > 1:
        raise UsageError(f"data.targets: a classification has one target, not {len(columns)}")
    return Classes(columns[0])


def _refuse_missing(column: Column, part: str) -> NoReturn:
    count = int(column.missing.sum())
    raise UsageError(
        f"the column '{column.name}' has no value in {count} of the {len(column.values)} {part} rows",
        remedy="say with data.missing what to do: mean, median or drop; or leave it out with data.exclude",
    )


def _refuse_missing_target(column: Column, part: str) -> None:
    if column.missing.any():
        count = int(column.missing.sum())
        raise UsageError(
            f"the target '{column.name}' has no value in {count} of the {len(column.values)} {part} rows",
            remedy="data.missing: drop leaves these rows out",
        )


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
