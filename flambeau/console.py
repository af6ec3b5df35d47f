"""Output for people: rich on a terminal, plain lines elsewhere."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console(*, error: bool = False) -> Console:
    """The console of this process, on standard output or standard error; always the same, as a line that is printed
    has to know of a progress bar that is drawn."""
    return _console(error)


@functools.cache
def _console(error: bool) -> Console:
    from rich.console import Console

    return Console(stderr=error, highlight=False, soft_wrap=True)


def is_terminal() -> bool:
    """Whether standard output is a terminal that a person looks at."""
    return sys.stdout.isatty()


def say(text: str = "", *, error: bool = False) -> None:
    """Print a line as it is: no markup is read from it."""
    if is_terminal():
        console(error=error).print(text, markup=False)
        return
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        # Who read it has left (head, a closed pager). No reason for a run to fail: the rest is said to nobody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def sparkline(values: Sequence[float], *, width: int = 60) -> str:
    """A row of blocks as high as the values: `▁▂▃▄▅▆▇█`; of many values, the mean of those that share a place."""
    if not values:
        return ""
    width = min(width, len(values))
    edges = [number * len(values) // width for number in range(width + 1)]
    means = [sum(values[begin:end]) / (end - begin) for begin, end in pairwise(edges)]
    low, high = min(means), max(means)
    blocks = "▁▂▃▄▅▆▇█"
    return "".join(
        blocks[round((mean - low) / (high - low) * (len(blocks) - 1)) if high > low else 0] for mean in means
    )
