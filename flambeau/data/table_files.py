"""Tables from CSV and Parquet files: columns of numbers, truth values or text, and what is missing in them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from flambeau.errors import MissingExtraError, UsageError

Kind = Literal["number", "whole", "boolean", "text", "other"]


@dataclass(frozen=True)
class Column:
    """One column. Numbers are float64 with NaN, truth values 0, 1 or NaN, text objects with None, where missing."""

    name: str
    kind: Kind
    values: npt.NDArray[Any]
    detail: str = ""
    """Of another kind, which only a column may have that nobody asks for: which it is."""

    @property
    def missing(self) -> npt.NDArray[np.bool_]:
        """Where there is no value."""
        if self.kind == "text":
            return np.array([value is None for value in self.values], dtype=bool)
        found: npt.NDArray[np.bool_] = np.isnan(self.values)
        return found

    def take(self, rows: npt.NDArray[Any]) -> Column:
        """Some of its rows."""
        return Column(self.name, self.kind, self.values[rows])


Table = dict[str, Column]


@dataclass(frozen=True)
class TableFormat:
    """How files are read."""

    delimiter: str = ","
    encoding: str = "utf-8"
    missing_values: tuple[str, ...] = ("", "NA", "NaN", "nan", "null")


def find_table_files(given: str | Path | Sequence[str | Path], place: str) -> list[Path]:
    """The files that a setting names: one, several, or those that a glob matches, sorted.

    Raises:
        UsageError: there are none, or one of them is missing.
    """
    found: list[Path] = []
    for item in [given] if isinstance(given, str | Path) else given:
        matched = _matched(Path(item))
        if not matched:
            raise UsageError(f"{place}: no file matches {item}")
        found += matched
    for path in found:
        if not path.is_file():
            raise UsageError(f"{place}: there is no file {path}")
    if not found:
        raise UsageError(f"{place}: no files are given")
    return found


def _matched(path: Path) -> list[Path]:
    magic = [place for place, name in enumerate(path.parts) if any(sign in name for sign in "*?[")]
    if not magic:
        return [path]
    return sorted(Path(*path.parts[: magic[0]]).glob("/".join(path.parts[magic[0] :])))


def read_table(files: Sequence[Path], form: TableFormat, like: Table | None = None) -> Table:
    """The rows of all files, one after the other.

    Args:
        like: a table whose kinds of columns these files are to have: text where it has numbers is an error then.

    Raises:
        UsageError: a file cannot be read, has no rows, or other columns than the first.
    """
    parts = [_read_parquet(path) if path.suffix in (".parquet", ".pq") else _read_csv(path, form) for path in files]
    first = parts[0]
    for path, part in zip(files, parts, strict=True):
        if part.keys() != first.keys():
            wrong = sorted(part.keys() ^ first.keys())
            raise UsageError(f"{path} has other columns than {files[0]}: {', '.join(wrong[:5])}")
    table = {}
    for name in first:
        pieces = [part[name] for part in parts]
        wanted = like[name].kind if like is not None and name in like else None
        table[name] = _joined(name, pieces, files, wanted, form)
    return table


def column_names(wanted: Sequence[str], has: Sequence[str], place: str, file: Path) -> list[str]:
    """The columns that names and shell patterns mean, in the table's order.

    Raises:
        UsageError: one means none; with the nearest name that there is.
    """
    from fnmatch import fnmatchcase

    chosen: set[str] = set()
    for name in wanted:
        matched = [name] if name in has else [own for own in has if fnmatchcase(own, name)]
        if not matched:
            near = get_close_matches(name, has, n=1)
            shown = ", ".join(has[:20]) + (" ..." if len(has) > 20 else "")
            raise UsageError(
                f"{place}: {file} has no column '{name}'",
                remedy=f"did you mean '{near[0]}'?" if near else f"it has {shown}",
            )
        chosen.update(matched)
    return [name for name in has if name in chosen]


# --- reading -----------------------------------------------------------------------------------------------

_Raw = Column | list[str]
"""A column with its kind, or the texts of a CSV file, whose kind all files together decide."""


def _read_csv(path: Path, form: TableFormat) -> dict[str, _Raw]:
    try:
        with path.open(newline="", encoding=form.encoding) as file:
            reader = csv.reader(file, delimiter=form.delimiter, strict=True)
            names = [name.strip().removeprefix("\ufeff") for name in next(reader, [])]
            rows = []
            for row in reader:
                if row and len(row) != len(names):
                    raise UsageError(
                        f"{path}:{reader.line_num}: {len(row)} values, and the first line names {len(names)} columns",
                        remedy="say with data.delimiter what stands between values" if len(names) == 1 else None,
                    )
                if row:
                    rows.append(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read as CSV: {error}") from error
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{path} has two columns called '{twice[0]}'")
    if not rows:
        raise UsageError(f"{path} has no rows")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def _read_parquet(path: Path) -> dict[str, _Raw]:
    try:
        parquet, types = import_module("pyarrow.parquet"), import_module("pyarrow.types")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pyarrow":
            raise
        raise MissingExtraError("pyarrow, which reads Parquet,", "tables") from error
    try:
        table = parquet.read_table(path, memory_map=True)
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise UsageError(f"{path} cannot be read as Parquet: {error}") from error
    if not table.num_rows:
        raise UsageError(f"{path} has no rows")
    return {name: _of_arrow(name, table.column(name), types, path) for name in table.column_names}


def _of_arrow(name: str, column: Any, types: Any, path: Path) -> Column:
    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    if types.is_string(kind) or types.is_large_string(kind):
        return Column(name, "text", np.array(column.to_pylist(), dtype=object))
    if types.is_boolean(kind):
        values = [np.nan if value is None else float(value) for value in column.to_pylist()]
        return Column(name, "boolean", np.array(values))
    if types.is_integer(kind) or types.is_floating(kind):
        values = column.cast("float64").to_numpy()
        return Column(name, "whole" if types.is_integer(kind) else "number", np.asarray(values, dtype=np.float64))
    if types.is_null(kind):
        return Column(name, "number", np.full(len(column), np.nan))
    return Column(name, "other", np.empty(0), f"{path}: the column '{name}' holds {column.type}")


def _joined(name: str, pieces: list[_Raw], files: Sequence[Path], wanted: Kind | None, form: TableFormat) -> Column:
    texts = [piece for piece in pieces if isinstance(piece, list)]
    if len(texts) == len(pieces):
        return _of_texts(name, texts, files, wanted, form)
    columns = [
        piece if isinstance(piece, Column) else _of_texts(name, [piece], [file], None, form)
        for piece, file in zip(pieces, files, strict=True)
    ]
    for column in columns:
        if column.kind == "other":
            return column
    kinds = {column.kind for column in columns}
    kind: Kind = kinds.pop() if len(kinds) == 1 else "number" if kinds == {"whole", "number"} else "text"
    if "text" in kinds and len(kinds) > 1:
        raise UsageError(f"the column '{name}' holds text in one of the files and numbers in another")
    if wanted is not None and (wanted == "text") != (kind == "text"):
        raise UsageError(f"{files[0]}: the column '{name}' holds {_WORDS[kind]}, and in training {_WORDS[wanted]}")
    return Column(name, kind, np.concatenate([column.values for column in columns]))


_WORDS: Mapping[Kind, str] = {"number": "numbers", "whole": "whole numbers", "boolean": "truth values", "text": "text"}


def _of_texts(
    name: str, pieces: list[list[str]], files: Sequence[Path], wanted: Kind | None, form: TableFormat
) -> Column:
    """A CSV column: truth values if all are, else numbers, else text."""
    missing = set(form.missing_values)
    values = [value.strip() for piece in pieces for value in piece]
    given = [value for value in values if value not in missing]
    readings: Mapping[Kind, Callable[[str], float]] = {"boolean": _boolean, "whole": _whole, "number": _number}
    for kind, reading in readings.items():
        if wanted is not None and (wanted == "text" or (wanted == "boolean") != (kind == "boolean")):
            continue
        try:
            numbers = {value: reading(value) for value in set(given)}
        except ValueError:
            continue
        if given or wanted is not None or kind == "number":
            return Column(name, kind, np.array([numbers.get(value, np.nan) for value in values], dtype=np.float64))
    if wanted is not None and wanted != "text":
        wrong = next(value for value in given if _fails(readings[wanted if wanted == "boolean" else "number"], value))
        row = values.index(wrong)
        for piece, file in zip(pieces, files, strict=True):
            if row < len(piece):
                found = f"row {row + 1} of the column '{name}' is '{wrong}'"
                raise UsageError(f"{file}: {found}, and in training it holds {_WORDS[wanted]}")
            row -= len(piece)
    return Column(name, "text", np.array([None if value in missing else value for value in values], dtype=object))


def _fails(reading: Callable[[str], float], value: str) -> bool:
    try:
        reading(value)
    except ValueError:
        return True
    return False


def _boolean(text: str) -> float:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return float(text.lower() == "true")


def _whole(text: str) -> float:
    if "_" in text:  # Python reads 1_000
        raise ValueError(text)
    return float(int(text))


def _number(text: str) -> float:
    if "_" in text:
        raise ValueError(text)
    return float(text)
