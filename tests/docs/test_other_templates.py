"""The page for users of other templates: every line of what these have is answered, by a test that exists."""

from __future__ import annotations

import ast
import functools
import re

from pages import ROOT

PAGE = ROOT / "docs" / "coming-from-other-templates.md"

COUNTS = {
    "F0": range(1, 8), "C0": range(8, 18), "D0": range(1, 13),
    "F1": range(1, 5), "C1": range(5, 15), "D1": range(1, 13),
    "F2": range(1, 16), "C2": range(16, 50), "D2": range(1, 19),
    "F3": range(1, 9), "C3": range(9, 16), "D3": range(1, 11),
    "F4": range(1, 10), "C4": range(10, 18), "D4": range(1, 12),
}  # fmt: skip
"""The numbers of the lines, by kind and template."""


@functools.cache
def names_in(path: str) -> frozenset[str]:
    """The names of the test functions in a file below `tests/`."""
    tree = ast.parse((ROOT / "tests" / path).read_text(encoding="utf-8"))
    found = (node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return frozenset(name for name in found if name.startswith("test_"))


def rows() -> dict[str, list[str]]:
    """The cells of each line of the tables, by its number: theirs, here, test."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if re.match(r"\| [FCD]\d\.\d+ \|", line)]
    return {number.strip(): [cell.strip() for cell in rest] for number, *rest in cells}


def test_every_line_is_there() -> None:
    """In its order, once."""
    assert list(rows()) == [f"{kind}.{number}" for kind, numbers in COUNTS.items() for number in numbers]


def test_every_line_has_a_test_or_a_reason() -> None:
    """A test that exists by that name, or the words that it is not there yet."""
    for number, (theirs, here, tests) in rows().items():
        assert theirs, number
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
        assert named or "not there yet: " in here, number
        for path, name in named:
            assert f"test_{name}" in names_in(path), f"{number}: tests/{path} has no test_{name}"
