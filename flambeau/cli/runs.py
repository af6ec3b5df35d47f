"""`flambeau runs`: the runs, newest first."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flambeau.console import console, is_terminal
from flambeau.errors import EXIT_DONE, RunFolderError
from flambeau.run_folder.listing import RunSummary, find_runs

HELP = "list the runs: state, step, best score"

STATES = ("running", "finished", "failed", "preempted", "dead")
TERMINAL_LIMIT = 50
"""Runs shown on a terminal if nothing else is asked for; elsewhere all are."""

_STYLES = {"running": "green", "finished": "bold", "failed": "red", "preempted": "yellow", "dead": "magenta"}
_HEADINGS = ("STATE", "CONFIG", "STEP", "BEST", "AGE", "PATH")


def _score_order(run: RunSummary) -> tuple[str, float]:
    # Scores of different metrics are not compared: those of one metric stand together, the highest first.
    return (run.best["metric"], -run.best["value"]) if run.best else ("\uffff", math.inf)


_ORDERS: dict[str, Callable[[RunSummary], Any]] = {
    "age": lambda run: run.age,
    "state": lambda run: STATES.index(run.state),
    "config": lambda run: run.config,
    "step": lambda run: -run.step,
    "score": _score_order,
    "path": lambda run: os.fspath(run.path),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("dir", nargs="?", type=Path, help="folder of runs (default: runs/ of the project)")
    parser.add_argument("--json", action="store_true", help="one JSON list, for programs")
    parser.add_argument(
        "--sort",
        choices=tuple(_ORDERS),
        default="age",
        help="newest, alphabetical, most steps or highest score first (default: age); equals: newest first",
    )
    parser.add_argument("--reverse", action="store_true", help="the other way round, e.g. lowest score first")
    parser.add_argument("--state", action="append", choices=STATES, help="only runs in this state; repeatable")
    parser.add_argument("--config", action="append", metavar="NAME", help="only runs of this configuration; repeatable")
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help=f"at most N runs (default: {TERMINAL_LIMIT} on a terminal, else all)",
    )


def run(args: argparse.Namespace) -> int:
    """List the runs."""
    folder = _runs_dir(args.dir)
    found = find_runs(folder)
    runs = [
        run
        for run in found
        if (not args.state or run.state in args.state) and (not args.config or run.config in args.config)
    ]
    runs.sort(key=_ORDERS[args.sort])
    if args.reverse:
        runs.reverse()
    terminal = is_terminal() and not args.json
    limit = args.limit if args.limit is not None else TERMINAL_LIMIT if terminal else len(runs)
    shown = runs[: max(limit, 0)]
    if args.json:
        print(json.dumps([_as_json(run) for run in shown], indent=2))
    elif not shown:
        print("no runs match" if found else f"no runs in {_nearest_path(folder)}")
    elif terminal:
        _print_coloured(shown, left=len(runs) - len(shown))
    else:
        print("\n".join(_lines(shown)))
    return EXIT_DONE


def _runs_dir(given: Path | None) -> Path:
    if given is None:
        from flambeau.config.project import find_project

        return find_project().root / "runs"
    if not given.is_dir():
        raise RunFolderError(f"{given} is not a folder")
    return given


def _row(run: RunSummary) -> tuple[str, ...]:
    step = f"{run.step}/{run.total_steps}" if run.total_steps else str(run.step)
    best = f"{run.best['metric']} {run.best['value']:.5g}" if run.best else "-"
    config = f"{run.config} ({run.debug})" if run.debug else run.config
    return (run.state, config, step, best, format_age(run.age), os.fspath(_nearest_path(run.path)))


def _lines(runs: Sequence[RunSummary]) -> list[str]:
    """Aligned lines, the headings first. The path comes last and unpadded: it can be copied or cut off."""
    rows = [_HEADINGS, *map(_row, runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return ["  ".join([*map(str.ljust, row, widths), row[-1]]) for row in rows]


def _print_coloured(runs: Sequence[RunSummary], *, left: int) -> None:
    from rich.text import Text

    head, *lines = _lines(runs)
    console().print(Text(head, style="dim"))
    for run, line in zip(runs, lines, strict=True):
        text = Text(line)
        text.stylize(_STYLES[run.state], 0, len(run.state))
        console().print(text, soft_wrap=True)  # the terminal wraps long lines itself: paths stay in one piece
    if left:
        console().print(Text(f"and {left} more (--limit N)", style="dim"))


def _as_json(run: RunSummary) -> dict[str, Any]:
    return {
        "path": os.fspath(run.path),
        "config": run.config,
        "state": run.state,
        "step": run.step,
        "total_steps": run.total_steps,
        "epoch": run.epoch,
        "best": run.best,
        "started": run.started.isoformat() if run.started else None,
        "age_seconds": round(run.age),
        "debug": run.debug,
        "error": run.error,
        "next": run.next,
    }


def _nearest_path(path: Path) -> Path:
    """The path as seen from here, if it lies below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path


def format_age(seconds: float) -> str:
    """A time span for people, in its largest unit: `12 s`, `3 min`, `5 h`, `40 d`."""
    seconds = max(seconds, 0)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds / size)} {unit}"
    return f"{int(seconds)} s"
