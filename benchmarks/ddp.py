"""Two processes of one thread each over gloo: Flambeau beside a hand-written script with DistributedDataParallel.

    python -m benchmarks.ddp                                    # all contenders; about ten minutes
    python -m benchmarks.ddp --only flambeau --rounds 20
    python -m benchmarks.ddp --only flambeau --profile          # where rank 0 spends its time

Each contender is a pair of processes of its own. A turn is some hundred steps of a fit that stands still between its
turns; before and after each turn of a contender the bare script has one. The ratio is the median over all turns.
"""

from __future__ import annotations

import argparse
import json
import os
import pstats
import pty
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks.harness import ENVIRONMENT, ROOT, ContenderError, drain, free_port, spread

REFERENCE = ("bare", "default")
CONTENDERS = {
    ("bare", "default"): "sliced batches, fused AdamW, `DistributedDataParallel(model)`: against itself",
    ("bare", "bucket_view"): "with `gradient_as_bucket_view=True`",
    ("bare", "static_graph"): "with `static_graph=True`",
    ("bare", "both"): "with both",
    ("bare", "loader"): "with `DataLoader` and `DistributedSampler`",
    ("bare", "apart"): "without DistributedDataParallel: no exchange at all, the bound",
    ("flambeau", "default"): "as it ships: run folder, checkpoints, TensorBoard, metrics, progress bar, guards",
    ("flambeau", "quiet"): "no run folder and no progress bar",
    ("flambeau", "static_graph"): "as it ships, with `trainer.static_graph`",
}
RANKS = 2


class Pair:
    """Two processes of one contender; both stand still but in their turns."""

    def __init__(self, contender: str, variant: str, task: str, steps: int, folder: str) -> None:
        self._requests: list[int] = []
        self._answers: list[Any] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        port = free_port()
        for rank in range(RANKS):
            requests_read, requests_write = os.pipe()
            answers_read, answers_write = os.pipe()
            terminal, slave = pty.openpty()
            self.processes.append(
                subprocess.Popen(
                    [
                        *(sys.executable, "-W", "ignore", "-m", "benchmarks.ddp_worker", contender, variant, task),
                        *(str(steps), str(requests_read), str(answers_write)),
                    ],
                    cwd=ROOT,
                    env=os.environ | ENVIRONMENT | _rank_environment(rank, port) | {"BENCHMARK_FOLDER": folder},
                    stdin=subprocess.DEVNULL,
                    stdout=slave,
                    stderr=slave,
                    pass_fds=(requests_read, answers_write),
                )
            )
            for descriptor in (requests_read, answers_write, slave):
                os.close(descriptor)
            threading.Thread(target=drain, args=(terminal,), daemon=True).start()
            self._requests.append(requests_write)
            self._answers.append(os.fdopen(answers_read))

    def turn(self, profile: str | None = None) -> dict[str, float]:
        """Seconds of a step: wall time of rank 0, CPU time of all processes."""
        for rank, descriptor in enumerate(self._requests):
            request = {"profile": profile} if profile and rank == 0 else {}
            os.write(descriptor, (json.dumps(request) + "\n").encode())
        lines = [answers.readline() for answers in self._answers]
        if not all(lines):
            raise ContenderError("a process ended: run it by hand to see why")
        told = [json.loads(line) for line in lines]
        return {"wall_s": told[0]["wall_s"], "cpu_s": sum(one["cpu_s"] for one in told)}

    def close(self) -> None:
        for descriptor in self._requests:
            os.close(descriptor)
        for process, answers in zip(self.processes, self._answers, strict=True):
            process.wait()
            answers.close()


def _rank_environment(rank: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@contextmanager
def pair(contender: str, variant: str, task: str, steps: int) -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="flambeau-benchmark-") as folder:
        running = Pair(contender, variant, task, steps, folder)
        try:
            running.turn()  # warms up: not counted
            yield running
        finally:
            running.close()


def compare(row: tuple[str, str], task: str, steps: int, rounds: int, processes: int) -> list[dict[str, Any]]:
    """The turns of a contender, each with the mean of the bare script's around it."""
    turns = []
    for _ in range(processes):
        with ExitStack() as stack:
            reference = stack.enter_context(pair(*REFERENCE, task, steps))
            contender = stack.enter_context(pair(*row, task, steps))
            before = reference.turn()
            for _ in range(rounds):
                turn = contender.turn()
                after = reference.turn()
                turns.append(
                    {clock: (turn[clock], (before[clock] + after[clock]) / 2) for clock in ("wall_s", "cpu_s")}
                )
                before = after
    return turns


def line(row: tuple[str, str], turns: list[dict[str, Any]]) -> str:
    cells = [*row, CONTENDERS[row]]
    for clock in ("wall_s", "cpu_s"):
        middle, low, high = spread([theirs / mine for mine, theirs in (turn[clock] for turn in turns)])
        cells.append(f"{middle:.3f} ({low:.3f} to {high:.3f})")
    cells.append(f"{spread([turn['wall_s'][0] for turn in turns])[0] * 1e6:.0f}")
    return f"| {' | '.join(cells)} |"


def profile(row: tuple[str, str], task: str, steps: int) -> None:
    with pair(*row, task, steps) as running, tempfile.NamedTemporaryFile() as stats:
        running.turn(profile=stats.name)
        print(f"\n{' '.join(row)}: {steps} steps of rank 0")
        pstats.Stats(stats.name).sort_stats("tottime").print_stats(35)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--task", choices=["lenet", "digits"], default="lenet")
    parser.add_argument("--only", nargs="+", metavar="CONTENDER[/VARIANT]", help="of: bare, flambeau")
    parser.add_argument("--steps", type=int, default=240, help="steps a turn (240: an epoch of LeNet)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2, help="pairs of processes a contender")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    rows = [row for row in CONTENDERS if not arguments.only or {row[0], "/".join(row)} & set(arguments.only)]
    if arguments.profile:
        for row in rows:
            profile(row, arguments.task, arguments.steps)
        return
    print(f"| | variant | what it is | samples/s by the bare script's | by CPU time | µs a step |\n{'|---' * 6}|")
    for row in rows:
        turns = compare(row, arguments.task, arguments.steps, arguments.rounds, arguments.processes)
        print(line(row, turns), flush=True)


if __name__ == "__main__":
    main()
