"""Runs contenders side by side: each in a process of its own, in turns with the good hand-written loop.

A turn is one fit of some hundred steps. Before and after each turn of a contender the good loop has one, so
that what else happens on the machine slows both alike; a contender's figure is the median over all turns of
its time by the mean of its two neighbours'. Several processes a contender, because one process is often some
percent faster or slower than the next for its whole life (addresses of its memory).
"""

from __future__ import annotations

import json
import os
import pty
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ("good_loop", "by hand")


class ContenderError(Exception):
    """A contender could not be started or failed; the last line of its traceback."""


class Worker:
    """A running `benchmarks.worker`."""

    def __init__(self, contender: str, variant: str, task: str) -> None:
        requests_read, self._requests = os.pipe()
        self._answers, answers_write = os.pipe()
        terminal, terminal_slave = pty.openpty()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-W", "ignore", "-m", "benchmarks.worker"),
                *(contender, variant, task, str(requests_read), str(answers_write)),
            ],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=terminal_slave,
            stderr=terminal_slave,
            pass_fds=(requests_read, answers_write),
        )
        for descriptor in (requests_read, answers_write, terminal_slave):
            os.close(descriptor)
        threading.Thread(target=drain, args=(terminal,), daemon=True).start()
        self._answer_lines = os.fdopen(self._answers)

    def measure(self, **request: Any) -> dict[str, Any]:
        os.write(self._requests, (json.dumps(request) + "\n").encode())
        line = self._answer_lines.readline()
        if not line:
            raise ContenderError(f"its process ended with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ContenderError(answer["error"])
        return answer

    def close(self) -> None:
        os.close(self._requests)  # the end of its input ends it
        self.process.wait()
        self._answer_lines.close()


ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "TERM": "xterm-256color",
    "COLUMNS": "100",
    "HF_HUB_OFFLINE": "1",
}


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def drain(terminal: int) -> None:
    """Reads what is drawn on a pseudo-terminal, as a terminal would, so that the writer never waits."""
    with os.fdopen(terminal, "rb", buffering=0) as output:
        try:
            while output.read(65536):
                pass
        except OSError:  # how Linux says that the other end is closed
            return


@contextmanager
def worker(contender: str, variant: str, task: str) -> Iterator[Worker]:
    running = Worker(contender, variant, task)
    try:
        yield running
    finally:
        running.close()


@dataclass
class Comparison:
    """What one contender took beside the good loop, turn by turn; seconds a step."""

    contender: str
    variant: str
    wall: list[tuple[float, float]] = field(default_factory=list)
    """(the contender's, the good loop's around it)"""
    cpu: list[tuple[float, float]] = field(default_factory=list)
    loss: float = float("nan")
    """After one fit; the same data and order should give the same."""
    weights_differ: float | None = None
    """Largest difference of a weight from the good loop's after one fit; 0 says equal to the last bit."""
    error: str | None = None

    def ratio(self, of: str = "wall") -> tuple[float, float, float]:
        """Median of the ratios to the good loop, and the quartiles."""
        return spread([mine / theirs for mine, theirs in self._turns(of)])

    def cost_us(self, of: str = "wall") -> tuple[float, float, float]:
        """Median of the differences from the good loop in µs a step, and the quartiles."""
        return spread([(mine - theirs) * 1e6 for mine, theirs in self._turns(of)])

    def step_us(self, of: str = "wall") -> float:
        return statistics.median(mine for mine, _ in self._turns(of)) * 1e6

    def _turns(self, of: str) -> list[tuple[float, float]]:
        return self.wall if of == "wall" else self.cpu


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and quartiles."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4)
    return middle, low, high


def compare(
    rows: Sequence[tuple[str, str]], task: str, *, what: str, steps: int, rounds: int, processes: int
) -> list[Comparison]:
    """Each (contender, variant) of `rows` against the good loop: `rounds` turns in each of its `processes`."""
    comparisons = [Comparison(*row) for row in rows]
    request = {"what": what, "steps": steps}
    with tempfile.TemporaryDirectory(prefix="flambeau-benchmark-") as folder:
        for _ in range(processes):
            with ExitStack() as stack:
                good = stack.enter_context(worker(*REFERENCE, task))
                good_weights = np.load(good.measure(**request, weights=f"{folder}/good.npy")["weights"])
                for comparison in comparisons:
                    print(f"{task} {what}: {comparison.contender} {comparison.variant}", file=sys.stderr)
                    try:
                        _take_turns(comparison, good, good_weights, task, request, rounds, folder)
                    except ContenderError as error:
                        comparison.error = str(error)
    return comparisons


def _take_turns(
    comparison: Comparison,
    good: Worker,
    good_weights: np.ndarray[Any, np.dtype[np.float32]],
    task: str,
    request: dict[str, Any],
    rounds: int,
    folder: str,
) -> None:
    with worker(comparison.contender, comparison.variant, task) as contender:
        first = contender.measure(**request, weights=f"{folder}/contender.npy")  # warms up too: not timed
        comparison.loss = first["loss"]
        comparison.weights_differ = float(np.abs(np.load(first["weights"]) - good_weights).max())
        before = good.measure(**request)
        for _ in range(rounds):
            turn = contender.measure(**request)
            after = good.measure(**request)
            comparison.wall.append((turn["wall_s"], (before["wall_s"] + after["wall_s"]) / 2))
            comparison.cpu.append((turn["cpu_s"], (before["cpu_s"] + after["cpu_s"]) / 2))
            before = after


def count_calls(contender: str, variant: str, task: str, steps: int) -> float:
    """Calls of Python and C functions in one training step: a figure without noise."""
    with worker(contender, variant, task) as running:
        return float(running.measure(what="calls", steps=steps)["calls"])
