"""`metrics.jsonl`: one JSON object a line, the same bytes for the same training."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flambeau.errors import RunFolderError

_FIRST = ("step", "epoch", "split")
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(", ", ": ")).encode


class MetricsFile:
    """Appends records to a file of JSON lines.

    A line depends on its record alone: `step`, `epoch` and `split` come first, the other keys in alphabetical
    order, floats in their shortest exact form. NaN and infinities, which JSON lacks, are the texts `"NaN"`,
    `"Infinity"` and `"-Infinity"`. Records must hold nothing of the wall clock: the file of a run that was
    killed and resumed equals the file of one that was not.
    """

    def __init__(self, path: Path) -> None:
        """Open `path` for appending; it is made if it is missing."""
        self.path = path
        self._file = path.open("ab")

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record of plain values (numbers, texts, booleans, None, lists and dicts of them).

        It is in the file after the next `flush` at the latest.

        Raises:
            TypeError: a value is something else, e.g. a tensor: make it a number first.
        """
        ordered = {key: record[key] for key in _FIRST if key in record}
        for key in sorted(record):
            ordered[key] = record[key]
        try:
            line = _encode(ordered)
        except ValueError:
            line = _encode(_spell_out(ordered))
        self._file.write(line.encode() + b"\n")

    def flush(self) -> None:
        """Hand all records to the operating system: from then on a kill of the process cannot lose them."""
        self._file.flush()

    def position(self) -> int:
        """Bytes in the file, all records so far included; what a checkpoint remembers for `truncate`."""
        self._file.flush()
        return os.fstat(self._file.fileno()).st_size

    def truncate(self, position: int) -> None:
        """Drop what lies beyond `position` bytes: on resume, the records that will be written again.

        Warns if the file does not have that many bytes, or not a line's end there: it was changed since, and
        some records are lost.
        """
        self._file.flush()
        content = self.path.read_bytes()
        end = content.rfind(b"\n", 0, position) + 1
        if end != position:
            warnings.warn(
                f"{self.path} was changed since the checkpoint (a line should end at byte {position}; "
                f"the last whole line before it ends at {end}): records are missing",
                stacklevel=2,
            )
        self._file.truncate(end)

    def close(self) -> None:
        """Write what is buffered and close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file, in order. A last line that is still being written is left out.

    Raises:
        FileNotFoundError: there is no such file.
        RunFolderError: a line is not a JSON object.
    """
    lines = path.read_bytes().split(b"\n")[:-1]
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise RunFolderError(f"{path}:{number}: not a line of JSON: {error}") from error
        if not isinstance(record, dict):
            raise RunFolderError(f"{path}:{number}: not a JSON object")
        records.append(_restore(record) if b'NaN"' in line or b'Infinity"' in line else record)
    return records


def _spell_out(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _spell_out(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spell_out(item) for item in value]
    return value


def _restore(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _restore(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_restore(item) for item in value]
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value
