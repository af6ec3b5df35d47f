"""What several processes cost, beyond the machines at hand: measured constants for the formulas of docs/scaling.md.

    python -m benchmarks.scaling                    # all tables; a few minutes
    python -m benchmarks.scaling --tables order

No process is started for the 10,000 ranks: the order of the samples is a function, so each rank's part can be asked for
here, gloo's groups are made of threads, and messages are counted in a run of two.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from benchmarks.costs import PARAMETERS, rows
from benchmarks.messages import listen, mesh, paces, store_pace, together
from flambeau.data import IndexStream
from flambeau.data.batch_order import BatchOrder

RANKS = 10_000
SAMPLES = 10**10
STEPS_LOOKED_AT = 16


def order(samples: int, batch_size: int, rank: int, ranks: int) -> BatchOrder:
    return BatchOrder(IndexStream(samples, 0), batch_size, drop_last=False, endless=True, rank=rank, ranks=ranks)


def simulate(batch_size: int) -> Iterator[str]:
    """All ranks at steps spread over an epoch, its last included."""
    parts = [order(SAMPLES, batch_size, rank, RANKS) for rank in range(RANKS)]
    stream = IndexStream(SAMPLES, 0)
    last = parts[0].steps_per_epoch - 1
    seen = []
    for step in np.linspace(0, last, STEPS_LOOKED_AT).astype(int).tolist():
        shares = [part.rows(0, step, step + 1)[: part.part(step).size] for part in parts]
        together = np.concatenate(shares)
        start = step * batch_size
        if not np.array_equal(together, stream.indices(0, start, min(start + batch_size, SAMPLES))):
            raise AssertionError(f"step {step}: the shares do not make up the batch of one process")
        seen.append(together)
    ids = np.concatenate(seen)
    if len(np.unique(ids)) != len(ids):
        raise AssertionError("a sample stands in two places of an epoch")
    yield f"{batch_size:,}"
    yield f"{len(ids):,}"
    yield "yes"


def pace(samples: int, batch_size: int, ranks: int) -> Iterator[str]:
    """One rank: µs a batch in the long run, µs to the first batch from somewhere in the middle, and memory."""
    part = order(samples, batch_size, ranks - 1, ranks)
    middle = part.steps_per_epoch // 2
    next(part.requests(middle))
    first = least(lambda: next(part.requests(middle + 1)))
    batches = max(2_000, min(100_000, 2_000_000 // part.whole.rows))

    def run() -> None:
        for _ in islice(part.requests(middle), batches):
            pass

    steady = least(run, 3) / batches
    tracemalloc.start()
    for _ in islice(part.requests(middle), 1_000):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    yield f"{samples:.0e}".replace("e+", "e")
    yield f"{ranks:,}"
    yield f"{batch_size:,}"
    yield f"{part.whole.rows}"
    yield f"{steady * 1e6:.1f}"
    yield f"{first * 1e6:,.0f}"
    yield f"{peak / 1e6:.1f}"


def least(function: Callable[[], object], times: int = 5) -> float:
    """Seconds of the fastest of several calls."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return min(taken)


def table(title: str, head: list[str], lines: Iterator[Iterator[str]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for row in lines:
        print(f"| {' | '.join(row)} |", flush=True)


def tables_of_order() -> None:
    table(
        f"{RANKS:,} ranks over {SAMPLES:.0e} samples, without processes",
        ["global batch", f"samples looked at, in {STEPS_LOOKED_AT} steps", "disjoint, whole, in the order of one rank"],
        (simulate(batch_size) for batch_size in (40_000, 10**6, 9_999)),
    )
    table(
        "The index stream of one rank",
        ["samples", "ranks", "global batch", "rows a batch", "µs a batch", "µs to the first batch", "memory, MB"],
        (
            pace(*row)
            for row in (
                (10**4, 128, 1),
                (10**6, 128, 1),
                (10**10, 128, 1),
                (10**10, 1_024, 8),
                (10**10, 8_192, 256),
                (10**10, 40_000, RANKS),
                (10**10, 10**6, RANKS),
                (10**12, 10**6, RANKS),
            )
        ),
    )


def tables_of_messages() -> None:
    for eval_batch_size in (256, 64):
        phases = together(2, listen, eval_batch_size)[1]
        names = sorted({name for counts in phases.values() for name in counts})
        table(
            f"What rank 1 of 2 says, with {4096 // eval_batch_size} validation batches: calls, and bytes of its own",
            ["", *names],
            (iter([phase, *(f"{counts.get(name, 0):g}" for name in names)]) for phase, counts in phases.items()),
        )
    table(
        "Two processes over loopback, the fastest of many calls",
        ["", "µs"],
        (iter([name, f"{value:,.0f}"]) for name, value in together(2, paces)[0].items()),
    )


def tables_of_gloo() -> None:
    for lazy in (False, True):
        groups = [mesh(ranks, lazy=lazy) for ranks in (2, 4, 8, 16, 32, 64)]
        table(
            f"A gloo group{' with TORCH_GLOO_LAZY_INIT=1' if lazy else ''}: of each rank",
            list(groups[0]),
            (iter(f"{value:.4g}" for value in group.values()) for group in groups),
        )
    table("A TCP store", ["", "µs"], (iter([name, f"{value:.1f}"]) for name, value in store_pace()))


def tables_of_costs() -> None:
    sizes = (8, 256, RANKS)
    head = ["", "formula", *(f"R = {ranks:,}" for ranks in sizes)]
    table(f"{PARAMETERS / 1e6:.0f} million parameters in float32, AdamW", head, rows(sizes))


TABLES = {"order": tables_of_order, "messages": tables_of_messages, "gloo": tables_of_gloo, "costs": tables_of_costs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    for name in parser.parse_args().tables:
        TABLES[name]()


if __name__ == "__main__":
    main()
