"""The nearest right name, for the end of an error message."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(word: str, names: Iterable[str]) -> str | None:
    """`did you mean 'seed'?` if one of the names is near enough to the word."""
    import difflib

    near = difflib.get_close_matches(word, sorted(set(names)), n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else None
