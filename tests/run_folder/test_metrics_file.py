"""metrics.jsonl: the same bytes for the same training, whatever happened in between."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flambeau.errors import RunFolderError
from flambeau.run_folder import MetricsFile, read_metrics

NOT_FINITE = {"NaN", "Infinity", "-Infinity"}  # texts that stand for numbers
texts = st.text(max_size=5).filter(lambda text: text not in NOT_FINITE)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


@given(records=st.lists(st.dictionaries(st.text(), values, max_size=5), max_size=5))
def test_records_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, records: list[Any]) -> None:
    """Floats to the last bit, texts with newlines, infinities."""
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    with MetricsFile(path) as file:
        for record in records:
            file.append(record)
    assert read_metrics(path) == records


def test_a_line_depends_on_its_record_alone(tmp_path: Path) -> None:
    """Not on the order in which the values were put together; step comes first."""
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.append({"loss": 0.1, "accuracy": 1.0, "step": 3, "split": "val"})
        file.append({"split": "val", "step": 3, "accuracy": 1.0, "loss": 0.1})
    assert path.read_bytes() == b'{"step": 3, "split": "val", "accuracy": 1.0, "loss": 0.1}\n' * 2


def test_numbers_that_json_lacks_are_texts_and_come_back_as_numbers(tmp_path: Path) -> None:
    """Any JSON reader takes the file; ours gives NaN back."""
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.append({"step": 1, "loss": math.nan, "list": [math.inf, {"x": -math.inf}]})
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["loss"] == "NaN"
    (record,) = read_metrics(path)
    assert math.isnan(record["loss"]) and record["list"] == [math.inf, {"x": -math.inf}]


def test_numpy_doubles_are_written_as_the_numbers_they_are(tmp_path: Path) -> None:
    """They are floats; other array types are refused by name instead of being converted in silence."""
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.append({"loss": np.float64(0.1)})
        with pytest.raises(TypeError, match="float32"):
            file.append({"loss": np.float32(0.1)})
    assert path.read_text() == '{"loss": 0.1}\n'


@given(
    before=st.lists(st.integers(), max_size=4),
    lost=st.lists(st.integers(), max_size=4),
    torn=st.binary(max_size=10),
)
def test_a_resumed_file_equals_one_that_was_never_cut(
    tmp_path_factory: pytest.TempPathFactory, before: list[int], lost: list[int], torn: bytes
) -> None:
    """Records written after the checkpoint, and half a line of a kill, are gone; the rest is the same."""
    folder = tmp_path_factory.mktemp("metrics")
    whole, resumed = folder / "whole.jsonl", folder / "resumed.jsonl"
    with MetricsFile(whole) as file:
        for value in [*before, *lost]:
            file.append({"value": value})
    with MetricsFile(resumed) as file:
        for value in before:
            file.append({"value": value})
        position = file.position()
        for value in lost:
            file.append({"value": value + 1})
    with resumed.open("ab") as raw:
        raw.write(torn)
    with MetricsFile(resumed) as file:
        file.truncate(position)
        assert file.position() == position
        for value in lost:
            file.append({"value": value})
    assert resumed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("position", [5, 100])
def test_a_file_that_was_changed_since_the_checkpoint_is_warned_of(tmp_path: Path, position: int) -> None:
    """What is left are whole lines."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a"')
    with MetricsFile(path) as file, pytest.warns(UserWarning, match="was changed since the checkpoint"):
        file.truncate(position)
    assert path.read_bytes() == (b"" if position == 5 else b'{"a": 1}\n{"a": 2}\n')


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    """A run can be read while it trains."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2')
    assert read_metrics(path) == [{"a": 1}]


@pytest.mark.parametrize("line", [b"{", b"\xff", b"[1]"])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    """With file and number."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl:2: not a"):
        read_metrics(path)


def test_flushed_records_survive_a_kill(tmp_path: Path) -> None:
    """The operating system has them."""
    path = tmp_path / "metrics.jsonl"
    code = (
        "import os, sys; from pathlib import Path; from flambeau.run_folder import MetricsFile\n"
        "file = MetricsFile(Path(sys.argv[1]))\n"
        "file.append({'step': 1}); file.flush(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert read_metrics(path) == [{"step": 1}]
