"""Reading YAML: what a text means, where it stands, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flambeau.config.origin import COMMAND_LINE, dotted, plain, walk
from flambeau.config.writing import write, write_inline
from flambeau.config.yaml import read_file, read_value, scalar
from flambeau.errors import Problem

KEYS = st.text(min_size=1, max_size=8) | st.integers(-9, 99)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


def unique_keys(value: dict[Any, Any]) -> bool:
    return len({str(key) for key in value}) == len(value)


VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4).filter(unique_keys),
    max_leaves=12,
)


def read(folder: Path, text: str | bytes) -> tuple[Any, list[Problem]]:
    path = folder / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    problems: list[Problem] = []
    node = read_file(path, problems)
    return (None if node is None else plain(node)), problems


def value_of(text: str) -> Any:
    problems: list[Problem] = []
    node = read_value(text, COMMAND_LINE, "key", problems)
    assert not problems
    assert node is not None
    return plain(node)


def same(first: Any, second: Any) -> bool:
    """Equal in value and type, nan included."""
    if isinstance(first, dict) and isinstance(second, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, float) and isinstance(second, float) and math.isnan(first):
        return math.isnan(second)
    return type(first) is type(second) and first == second


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("+3", 3),
        ("012", 12),
        ("0o17", 15),
        ("0xFF", 255),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
    ],
)
def test_numbers_truth_values_and_null_are_those_of_yaml_1_2(text: str, value: object) -> None:
    """`1e-3` is a float and `012` is twelve."""
    assert same(scalar(text), value)


@pytest.mark.parametrize(
    "text", ["yes", "no", "on", "off", "y", "12:30", "2026-01-01", "1_000", "0b1", "nan", "inf", "1e", "e3", "."]
)
def test_what_only_yaml_1_1_converts_is_text(text: str) -> None:
    """`no`, `on` and `12:30` stay what they look like."""
    assert scalar(text) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_reads_back_as_python_writes_it(number: float) -> None:
    """repr(float) is a number of the same value."""
    read_back = scalar(repr(number))
    assert isinstance(read_back, float)
    assert read_back == number


@given(VALUES)
def test_what_is_written_reads_back_the_same(value: Any) -> None:
    """Any tree of plain values survives writing and reading, types and order of keys included."""
    problems: list[Problem] = []
    node = read_value("[" + write_inline(value) + "]", COMMAND_LINE, "", problems)
    assert not problems
    assert node is not None
    assert same(plain(node), [value])


@given(st.dictionaries(KEYS, VALUES).filter(unique_keys))
def test_a_file_that_is_written_reads_back_the_same(tmp_path_factory: Any, value: dict[Any, Any]) -> None:
    """The same in block style, through a real file."""
    read_back, problems = read(tmp_path_factory.getbasetemp(), write(value))
    assert not problems
    assert same(read_back, value)


@given(st.text())
def test_other_yaml_readers_read_written_text_as_text(text: str) -> None:
    """A reader of YAML 1.1 takes no text for a truth value, a date or a number either."""
    import yaml

    assert yaml.safe_load(write({"key": text})) == {"key": text}


def test_each_value_knows_its_line(tmp_path: Path) -> None:
    """Also inside flow mappings and lists."""
    path = tmp_path / "c.yaml"
    path.write_text("a: 1\nb:\n  c: [1,\n      2]\n  d: {e: 3,\n      f: 4}\n")
    node = read_file(path, [])
    assert node is not None
    lines = {dotted(where): own.origin.place.rpartition(":")[2] for where, own in walk(node) if where}
    expected = {"a": "1", "b": "2", "b.c": "3", "b.c.0": "3", "b.c.1": "4", "b.d": "5", "b.d.e": "5", "b.d.f": "6"}
    assert lines == expected


def test_a_key_written_twice_is_reported_with_both_lines(tmp_path: Path) -> None:
    """At any depth, and also if only the spelling of a number differs."""
    _, problems = read(tmp_path, "a:\n  b: 1\n  c: 2\n  b: 3\nd: {1: x, '1': y}\n")
    assert [problem.key for problem in problems] == ["a.b", "d.1"]
    assert problems[0].place.endswith("c.yaml:4")
    assert "c.yaml:2" in problems[0].message


def test_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    """A merged mapping gives what is not written; the earlier of several wins; the parts share nothing."""
    value, problems = read(tmp_path, "a: &a {x: 1, y: [1]}\nb: &b {y: 2, z: 3}\nc:\n  <<: [*a, *b]\n  x: 9\nd: *a\n")
    assert not problems
    assert value["c"] == {"y": [1], "z": 3, "x": 9}
    value["a"]["y"].append(2)
    assert value["d"]["y"] == [1]


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system [echo]",
        "a: !!python/name:os.system",
        "a: !custom 1",
        "a: !!set {x}",
        "a: !!binary aGk=",
        "a: !!timestamp 2026-01-01",
        "!!omap [a: 1]",
    ],
)
def test_a_tag_that_would_make_an_object_is_an_error(tmp_path: Path, text: str) -> None:
    """Nothing but plain values can be written."""
    value, problems = read(tmp_path, text)
    assert value is None
    assert "unknown tag" in problems[0].message
    assert problems[0].place.endswith("c.yaml:1")


@pytest.mark.parametrize(("text", "value"), [("!!str 5", "5"), ("!!int '5'", 5), ("!!float 1", 1.0)])
def test_the_standard_scalar_tags_convert(tmp_path: Path, text: str, value: object) -> None:
    """`!!str 5` is text."""
    assert same(read(tmp_path, f"a: {text}\n")[0], {"a": value})


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a: 1\nb: [1,\n", 3, "not valid YAML"),
        ("a: 1\n\tb: 2\n", 2, "tabs"),
        ("a: {b: ${c}}\n", 1, "quote a reference"),
        ("a: 1\n---\nb: 2\n", 2, "single document"),
        ("a: *nowhere\n", 1, "undefined alias"),
        ("- a\n- b\n", 1, "mapping"),
        ("just text\n", 1, "mapping"),
        ("a: &x [*x]\n", 1, "contains itself"),
        ("a: 1\n[x, y]: 2\n", 2, "not a collection"),
        ("a: 1\n1.5: 2\n", 2, "quote it"),
        ("a: 1\ntrue: 2\n", 2, "quote it"),
        ("a: !!int x\n", 1, "not a whole number"),
        ("a: 1\nb: " + "9" * 5000, 2, "whole number"),
        (b"a: 1\nb: \xff\n", 2, "UTF-8"),
        ("a: 1\nb: \x07\n", 2, "not valid YAML"),
    ],
)
def test_a_file_that_cannot_be_read_is_reported_with_its_line(
    tmp_path: Path, text: str | bytes, line: int, says: str
) -> None:
    """One problem, with the line and what to do about it where that is known."""
    _, problems = read(tmp_path, text)
    assert len(problems) == 1
    assert problems[0].place.endswith(f"c.yaml:{line}")
    assert says in str(problems[0])


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "\ufeff"])
def test_an_empty_file_is_an_empty_configuration(tmp_path: Path, text: str) -> None:
    """A file of comments, too."""
    assert read(tmp_path, text) == ({}, [])


@pytest.mark.parametrize("depth", [100, 60_000])
def test_very_deep_nesting_is_an_error_and_no_crash(tmp_path: Path, depth: int) -> None:
    """PyYAML's C parser alone would crash the process."""
    _, problems = read(tmp_path, "a: " + "[" * depth + "]" * depth)
    assert "levels deep" in problems[0].message


def test_aliases_cannot_multiply_without_bound(tmp_path: Path) -> None:
    """Ten lines that stand for 10^10 values are refused."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    _, problems = read(tmp_path, "\n".join(lines))
    assert "more than" in problems[0].message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        (" 7 ", 7),
        ("[1, a, [true]]", [1, "a", [True]]),
        ("{name: mlp, sizes: [1]}", {"name": "mlp", "sizes": [1]}),
        ("[]", []),
        ("'3'", "3"),
        ("''", ""),
        ("a: b", "a: b"),
        ("x # y", "x # y"),
        ("*.bias", "*.bias"),
        ("!x", "!x"),
        ("- a", "- a"),
        ("${a.b}", "${a.b}"),
        ("C:\\data", "C:\\data"),
        ("a=b", "a=b"),
    ],
)
def test_a_value_of_the_command_line_is_flow_yaml_or_one_scalar(text: str, value: object) -> None:
    """Only a bracket, a brace or a quote at its start makes it more than a scalar."""
    assert same(value_of(text), value)


@given(st.text().filter(lambda text: text.strip() and text.strip()[0] not in "[{'\""))
def test_any_other_text_is_taken_whole(text: str) -> None:
    """No character in it has a meaning of its own."""
    value = value_of(text)
    assert value == text.strip() or not isinstance(value, str)
