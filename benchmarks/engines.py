"""`python -m benchmarks.engines`: Flambeau beside the hand-written loop and its peers, on this machine's CPU.

Prints Markdown tables on standard output and what it is doing on standard error. See README.md for what the
tables mean and what the peers need installed.
"""

from __future__ import annotations

import argparse
import ast
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks import startup
from benchmarks.contenders import CONTENDERS
from benchmarks.harness import REFERENCE, Comparison, compare, count_calls

TABLES = ("cost", "digits", "lenet", "calls", "startup")


def main() -> None:
    arguments = parse_arguments()
    rows = [
        REFERENCE,
        *(
            (contender, variant)
            for contender in CONTENDERS
            if contender in arguments.only and contender != REFERENCE[0]
            for variant in described(contender)[1]
        ),
    ]
    repeated = {"rounds": arguments.rounds, "processes": arguments.processes}
    print(f"`{shlex.join(['python', '-m', 'benchmarks.engines', *sys.argv[1:]])}`\n\n{machine()}\n")
    print_table(
        ["", "settings", "what they are"],
        [(contender, variant, described(contender)[1][variant]) for contender, variant in rows],
    )
    if "cost" in arguments.tables:
        print("### The engine's own cost a step: digits MLP, the same prepared batches for all\n")
        cost_table(compare(rows, "digits", what="steps", steps=500, **repeated))
    for task, steps, title, aim in (
        ("digits", 1000, "digits MLP, 1,000 steps of 64 an epoch", "digits (at least 1.5)"),
        ("lenet", 240, "LeNet, 28x28 images of bytes, 240 steps of 128 an epoch", "LeNet (at least 1.15)"),
    ):
        if task in arguments.tables:
            print(f"### A whole epoch, each with its usual data path: {title}\n")
            epoch_table(compare(rows, task, what="epochs", steps=steps, **repeated), aim)
    if "calls" in arguments.tables:
        print("### Function calls a step: digits MLP, the same prepared batches for all\n")
        calls_table(rows)
    if "startup" in arguments.tables:
        print("### CPU seconds (user and system; least and greatest of 7 in brackets)\n")
        startup_table()
    if "flambeau" in arguments.only:
        print_aims()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=CONTENDERS, choices=CONTENDERS, metavar="CONTENDER")
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES)
    parser.add_argument("--rounds", type=int, default=5, help="turns in each process (default: 5)")
    parser.add_argument("--processes", type=int, default=2, help="processes of each contender (default: 2)")
    return parser.parse_args()


def described(contender: str) -> tuple[str, dict[str, str]]:
    """A contender's LIBRARY and VARIANTS, read from its source: its library may be missing here."""
    tree = ast.parse((Path(__file__).parent / "contenders" / f"{contender}.py").read_text())
    constants = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    return ast.literal_eval(constants["LIBRARY"]), ast.literal_eval(constants["VARIANTS"])


def machine() -> str:
    """The processor, its cores, the load of others, and the versions of what is compared."""
    processor = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    libraries = dict.fromkeys(["torch", *(described(contender)[0] for contender in CONTENDERS)])
    return (
        f"{processor}, {os.cpu_count()} cores (load {os.getloadavg()[0]:.1f} before), "
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {_version(name)}" for name in libraries)
    )


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "(this checkout)" if library == "flambeau" else "(not installed)"


def cost_table(comparisons: Sequence[Comparison]) -> None:
    print(
        f"The good loop takes {reference_step_us(comparisons):.0f} µs a step. "
        "Medians of pairs in turns; in brackets the quartiles.\n"
    )
    print_table(
        ["", "settings", "own cost, µs a step", "by CPU time, µs", "ratio", "weights after 551 steps"],
        (
            [*name(c), spread(c.cost_us(), 0), spread(c.cost_us("cpu"), 0), f"{c.ratio()[0]:.3f}", weights(c)]
            if c.error is None
            else [*name(c), failure(c), "", "", ""]
            for c in comparisons
        ),
    )
    for c in comparisons:
        if (c.contender, c.variant) == ("flambeau", "default") and c.wall:
            cost = f"{c.cost_us()[0]:.1f} ({c.cost_us('cpu')[0]:.1f} by CPU time)"
            AIMS["own cost on the digits MLP, µs a step (at most 15)"] = cost


def epoch_table(comparisons: Sequence[Comparison], aim: str) -> None:
    print(
        f"The good loop takes {reference_step_us(comparisons):.0f} µs a step of such an epoch. "
        "Medians of pairs in turns; in brackets the quartiles.\n"
    )
    print_table(
        ["", "settings", "ratio", "by CPU time", "µs a step", "loss afterwards"],
        (
            [*name(c), spread(c.ratio(), 3), spread(c.ratio("cpu"), 3), f"{c.step_us():.0f}", loss(c)]
            if c.error is None
            else [*name(c), failure(c), "", "", ""]
            for c in comparisons
        ),
    )
    measured = {(c.contender, c.variant): c for c in comparisons if c.wall}
    flambeau = measured.get(("flambeau", "default"))
    for variant in ("same AdamW", "default AdamW"):
        usual = measured.get(("usual_loop", variant))
        if usual and flambeau:
            times, of_cpu = (usual.ratio(of)[0] / flambeau.ratio(of)[0] for of in ("wall", "cpu"))
            aim_of = f"usual loop ({variant}) by Flambeau, an epoch of {aim}"
            AIMS[aim_of] = f"{times:.2f} ({of_cpu:.2f} by CPU time)"


def calls_table(rows: Sequence[tuple[str, str]]) -> None:
    lines = []
    for contender, variant in rows:
        print(f"calls: {contender} {variant}", file=sys.stderr)
        try:
            calls = f"{count_calls(contender, variant, 'digits', steps=500):.1f}"
        except Exception as error:  # shown in the table in place of the figure
            calls = str(error).strip().rpartition("\n")[2]
        lines.append([contender, variant, calls])
    print_table(["", "settings", "calls of Python and C functions"], lines)


def startup_table() -> None:
    lines = startup.measure(repeats=7)
    print_table(["", "CPU seconds"], [(line.what, line.text()) for line in lines])
    for line in lines:
        if line.at_most is not None:
            taken = "failed" if line.failed else f"{line.median:.2f}"
            AIMS[f"CPU seconds, {line.what} (at most {line.at_most})"] = taken


AIMS: dict[str, str] = {}


def print_aims() -> None:
    if AIMS:
        print("### Aims\n")
        print_table(["aim", "measured"], list(AIMS.items()))


def reference_step_us(comparisons: Sequence[Comparison]) -> float:
    return statistics.median(theirs for c in comparisons for _, theirs in c.wall) * 1e6


def name(comparison: Comparison) -> tuple[str, str]:
    if (comparison.contender, comparison.variant) == REFERENCE:
        return "good_loop against itself", comparison.variant
    return comparison.contender, comparison.variant


def loss(comparison: Comparison) -> str:
    return f"{comparison.loss:.4f}"


def weights(comparison: Comparison) -> str:
    if comparison.weights_differ == 0:
        return "the same bits"
    return f"differ by up to {comparison.weights_differ:.1g}; loss {comparison.loss:.4f}"


def failure(comparison: Comparison) -> str:
    return (comparison.error or "").strip().rpartition("\n")[2]


def spread(values: tuple[float, float, float], digits: int) -> str:
    middle, low, high = values
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def print_table(head: Sequence[str], lines: Sequence[Sequence[str]] | Iterator[Sequence[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for line in lines:
        print("| " + " | ".join(line) + " |", flush=True)
    print()


if __name__ == "__main__":
    main()
