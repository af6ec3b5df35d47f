"""The formulas of docs/scaling.md, as a table: what a run of R processes sends, keeps and writes.

The constants were counted and measured by the other tables of `benchmarks.scaling`; the code decides those in bytes,
the machine those in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

PARAMETERS = 100e6
"""Of the example, float32 with AdamW."""
TENSORS = 450
"""Weights and optimizer state of the example, as a checkpoint counts them."""
VALIDATION_BATCHES = 1_000

BUCKET = 25 * 2**20
"""Bytes of gradients in one message of DistributedDataParallel."""
MESSAGE = 18e-6
"""Seconds of one small message over loopback: half an all-reduce of 4 bytes between two processes."""
QUESTION = 3.2e-6
"""Seconds that a TCP store spends on a question."""
MEANS = 52
"""Bytes of a process's part of a log line: one mean."""
BATCH = 350
"""Bytes that a process tells of each batch that it has evaluated: loss, and one metric's sum and count."""
ADDRESS, ADDRESS_OF_EACH = 154, 8
"""Bytes that a process leaves in the store for a gloo group; the second for each process, without lazy connections."""
CHUNK = 25
"""Bytes of the index of a sharded checkpoint for one piece of one tensor."""
LOOKS = 4
"""Questions that a process asks the board at each look."""

Formula = Callable[[int], float]

UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))


def size(count: float) -> str:
    """`1.2 GB`."""
    for unit, name in UNITS:
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return "0"


def duration(seconds: float) -> str:
    """`1.2 ms`."""
    for unit, name in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return "0"


def number(count: float) -> str:
    return f"{count:,.0f}"


def period(ranks: int) -> float:
    """Seconds between two looks of a process at the board."""
    return max(0.25, ranks / 4000)


def mesh(ranks: int) -> float:
    """Bytes that a process reads from the store to join a gloo group of eager connections."""
    return ranks * (ADDRESS + ADDRESS_OF_EACH * ranks)


def evaluated(ranks: int) -> float:
    """Bytes that a process receives after an evaluation: messages are as long as the longest."""
    return BATCH * ranks * -(-VALIDATION_BATCHES // ranks)


ROWS: list[tuple[str, str, Callable[[float], str], Formula]] = [
    ("**a step**: gradients, sent by each", "2(R-1)/R · 4P", size, lambda r: 2 * (r - 1) / r * 4 * PARAMETERS),
    ("their messages, sent by each", "2(R-1) · buckets", number, lambda r: 2 * (r - 1) * -(-4 * PARAMETERS // BUCKET)),
    ("units of the loss, in the same message", "4", size, lambda r: 4),
    ("**the board**: between two looks", "max(0.25 s, R/4000)", duration, period),
    ("questions a second, all together", "4R / period", number, lambda r: LOOKS * r / period(r)),
    ("of a core of the store's process", "· 3.2 µs", lambda x: f"{x:.2%}", lambda r: LOOKS * r / period(r) * QUESTION),
    ("**a log line**: received by each", "2 gathers of R", size, lambda r: r * (8 + MEANS) + r * (8 + 2)),
    ("takes, over loopback", "4(R-1) messages", duration, lambda r: 4 * (r - 1) * MESSAGE),
    ("**a validation** of V = 1,000 batches: received by each", "350 R ⌈V/R⌉", size, evaluated),
    ("**a checkpoint**: copied and written by rank 0", "12P", size, lambda r: 12 * PARAMETERS),
    ("means in progress, in it", "52R", size, lambda r: MEANS * r),
    ("sharded: copied and written by each", "12P/R", size, lambda r: 12 * PARAMETERS / r),
    ("sharded: the index of the pieces", "25 · tensors · R", size, lambda r: CHUNK * TENSORS * r),
    ("**a start**: weights, received by each", "4P", size, lambda r: 4 * PARAMETERS),
    ("a gloo group: connections of each", "R-1", number, lambda r: r - 1),
    ("a gloo group: read from the store by each", "R(154 + 8R)", size, mesh),
    ("a gloo group: read from the store by all", "R²(154 + 8R)", size, lambda r: r * mesh(r)),
    ("lazily: connections of each", "2", number, lambda r: min(2, r - 1)),
    ("lazily: read from the store by all", "308R", size, lambda r: 2 * ADDRESS * r),
    ("**a resume**: read by all, copies", "12PR", size, lambda r: 12 * PARAMETERS * r),
    ("read by all, sharded", "12P + index · R", size, lambda r: 12 * PARAMETERS + CHUNK * TENSORS * r * r),
]


def rows(sizes: tuple[int, ...]) -> Iterator[Iterator[str]]:
    """What happens, the formula, and its value for each number of processes."""
    for what, formula, show, value in ROWS:
        yield iter([what, formula, *(show(value(ranks)) for ranks in sizes)])
