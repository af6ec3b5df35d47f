"""Tables as text, for trackers that have none of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown; floats with four significant digits.

    Raises:
        ValueError: a row has not as many cells as there are columns.
    """
    for number, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(f"row {number} of the table has {len(row)} cells, and there are {len(columns)} columns")
    lines = [list(map(_cell, columns)), ["---"] * len(columns), *(list(map(_cell, row)) for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())
