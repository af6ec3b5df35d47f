"""Where the processes of a run are: their stacks, grouped, and what follows from them, in words."""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import flambeau

DEEPEST = 40
"""Innermost frames of a stack that are kept."""

SHOWN = 10
"""Innermost frames of a stack that are printed."""

WIDEST = 100
"""Characters of a line of source that are printed."""

DEBUGGERS = frozenset({"pdb", "bdb", "ipdb", "pudb", "pydevd", "_pydevd_bundle", "debugpy"})
"""Modules that are on the stack of a process that stands in a debugger."""

_TORCH = str(Path(torch.__file__).parent)
_LIBRARIES = (
    _TORCH,
    str(Path(flambeau.__file__).parent),
    *sorted({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}, reverse=True),
)


@dataclass(frozen=True)
class Frame:
    """A line that a stack stands on."""

    file: str
    line: int
    function: str
    source: str

    @property
    def is_users(self) -> bool:
        """Whether the line belongs neither to Python, nor to an installed package, nor to Flambeau."""
        return not self.file.startswith(("<", *(library + os.sep for library in _LIBRARIES)))

    @property
    def short_file(self) -> str:
        """The file as seen from where packages are installed, or from the working directory."""
        for home in (*_LIBRARIES[2:], *(str(Path(library).parent) for library in _LIBRARIES[:2]), str(Path.cwd())):
            if self.file.startswith(home + os.sep):
                return self.file.removeprefix(home + os.sep)
        return self.file

    def __str__(self) -> str:
        return f"{self.short_file}:{self.line} in {self.function}"


@dataclass
class Sighting:
    """Where one process was seen."""

    position: str
    """What it last said it was doing: `step 12`."""
    idle: float
    """Seconds since then."""
    paused: bool = False
    """It is not expected to go on soon."""
    stack: list[Frame] = field(default_factory=list)
    """Outermost first; of its main thread."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Sighting:
        return cls(**{**data, "stack": [Frame(**frame) for frame in data["stack"]]})

    @property
    def waits_in(self) -> str | None:
        """The collective operation it waits in; None if it is elsewhere, as far as Python's stack tells."""
        if not self.stack:
            return None
        inner = self.stack[-1]
        if inner.file.startswith(f"{_TORCH}/autograd") or inner.function == "backward":
            return "the backward pass"
        if not inner.file.startswith(f"{_TORCH}/distributed"):
            return None
        return inner.function

    @property
    def users_line(self) -> Frame | None:
        """The innermost line that the user wrote, else the innermost of Flambeau."""
        for wanted in (lambda frame: frame.is_users, lambda frame: not frame.file.startswith(_TORCH)):
            for frame in reversed(self.stack):
                if wanted(frame):
                    return frame
        return None


def main_stack() -> list[Frame]:
    """The stack of this process's main thread, outermost first."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return []
    found = traceback.extract_stack(frame)[-DEEPEST:]
    return [Frame(entry.filename, entry.lineno or 0, entry.name, entry.line or "") for entry in found]


def in_debugger() -> bool:
    """Whether the main thread stands in a debugger."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] in DEBUGGERS:
            return True
        frame = frame.f_back
    return False


def report(seen: Mapping[int, Sighting], silent: Mapping[int, str]) -> str:
    """Where every process is: the stack of each, equal ones once; `>` marks the user's lines.

    Args:
        seen: by rank.
        silent: the last known positions of the ranks that were not seen.
    """
    lines: list[str] = []
    for ranks, sighting in _groups(seen).items():
        waits = f", waits in {sighting.waits_in}" if sighting.waits_in else ""
        lines.append(f"{name_ranks(ranks).capitalize()}: {sighting.position}{waits}")
        if len(sighting.stack) > SHOWN:
            lines.append(f"    ... {len(sighting.stack) - SHOWN} more")
        for frame in sighting.stack[-SHOWN:]:
            mark = ">" if frame.is_users else " "
            lines.append(f"  {mark} {frame}" + (f": {frame.source[:WIDEST]}" if frame.source else ""))
    for rank, position in sorted(silent.items()):
        lines.append(f"{name_ranks([rank]).capitalize()}: no sign of life; last heard of at {position}")
    return "\n".join(lines)


def conclude(seen: Mapping[int, Sighting], silent: Sequence[int]) -> str:
    """Which process the others wait for, as far as that can be seen."""
    if silent:
        they = "it is" if len(silent) == 1 else "they are"
        return f"Missing: {name_ranks(silent)}; {they} stopped, dead, or on a machine that is gone or out of reach."
    groups = _groups(seen)
    waiting = {ranks: sighting for ranks, sighting in groups.items() if sighting.waits_in}
    elsewhere = {ranks: sighting for ranks, sighting in groups.items() if not sighting.waits_in}
    if waiting and elsewhere:
        return f"Missing: {_places(elsewhere)}; not in the collective operation that the others wait in."
    if len(waiting) > 1:
        return (
            f"They wait for each other in different places: {_places(waiting)}. "
            "What only some processes run (`if rank == 0:`) must not hold a collective operation."
        )
    if len(groups) > 1:
        return f"They are at different places: {_places(groups)}."
    return f"All are at the same place: {_places(groups)}. Look at the network and the devices."


def _groups(seen: Mapping[int, Sighting]) -> dict[tuple[int, ...], Sighting]:
    """One sighting for all ranks that are at the same place."""
    groups: dict[Any, list[int]] = {}
    for rank, sighting in sorted(seen.items()):
        place = (sighting.position, *((frame.file, frame.line) for frame in sighting.stack))
        groups.setdefault(place, []).append(rank)
    return {tuple(ranks): seen[ranks[0]] for ranks in groups.values()}


def _places(groups: Mapping[tuple[int, ...], Sighting]) -> str:
    return "; ".join(
        name_ranks(ranks) + (f" in {sighting.waits_in}" if sighting.waits_in else "") + f" at {sighting.users_line}"
        for ranks, sighting in groups.items()
    )


def name_ranks(ranks: Sequence[int]) -> str:
    """`rank 3`, `ranks 0, 2-5`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    words = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"rank {words}" if len(ranks) == 1 else f"ranks {words}"
