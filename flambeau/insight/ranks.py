"""What several processes say and do in the order of their ranks, where none can wait for ever for another.

Nothing here is a collective: each process leaves its message in the store of the process group, and only who prints, or
whose turn it is, waits, and no longer than a limit. `print` stays what it is. In one process, a notebook for
instance, all of it works, and waits for nobody.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from torch import distributed as dist

from flambeau.errors import FlambeauError
from flambeau.runtime.pulse import StoreBoard, connect
from flambeau.runtime.world import World, current_world, launched_rank

P = ParamSpec("P")
R = TypeVar("R")

LOOK_SECONDS = 0.005
"""Between two looks for a message."""


def is_main() -> bool:
    """Whether this process is rank 0, or alone. Joins no process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return launched_rank() == 0


def main_only(function: Callable[P, R]) -> Callable[P, R | None]:
    """A function that does nothing, and gives None, in processes other than rank 0."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R | None:
        return function(*args, **kwargs) if is_main() else None

    return wrapped


def print_in_order(*values: object, sep: str = " ", timeout: float = 60.0) -> None:
    """Print what each process has to say, in the order of ranks: rank 0 prints it all, each line with its rank.

    To be called by all processes equally often. Only rank 0 waits for the others; of one that says nothing, because it
    failed for instance, it says so.

    Args:
        values: as of `print`.
        timeout: seconds that rank 0 waits for the others.
    """
    text, world = sep.join(map(str, values)), current_world()
    if world.size == 1:
        print(text, flush=True)
        return
    round_ = _Round.next(world)
    if not world.is_main:
        round_.post(text)
        return
    deadline = time.monotonic() + timeout
    for rank in range(world.size):
        said = text if rank == 0 else round_.wait(rank, deadline)
        for line in (f"(nothing within {timeout:g} s)" if said is None else said).split("\n"):
            print(f"[rank {rank}] {line}", flush=True)


@contextmanager
def in_rank_order(timeout: float = 600.0) -> Iterator[None]:
    """The block, one process after the other in the order of ranks: for files that several must not write at once.

    To be entered by all processes equally often. A process whose block fails passes its turn on all the same.

    Args:
        timeout: seconds that a process waits for its turn.

    Raises:
        FlambeauError: the turn did not come: a process before this one has not got here.
    """
    world = current_world()
    if world.size == 1:
        yield
        return
    round_ = _Round.next(world)
    if world.rank and round_.wait(world.rank - 1, time.monotonic() + timeout) is None:
        round_.post("late")
        raise FlambeauError(f"rank {world.rank} waited {timeout:g} s for its turn after rank {world.rank - 1}")
    try:
        yield
    finally:
        round_.post("done")


class _Round:
    """One exchange of messages; each process makes its rounds in the same order."""

    _board: StoreBoard | None = None
    _of: str = ""
    _count = 0

    def __init__(self, board: StoreBoard, number: int, rank: int) -> None:
        self._messages, self._number, self._rank = board, number, rank

    @classmethod
    def next(cls, world: World) -> _Round:
        if cls._board is None or cls._of != world.name:
            cls._board, cls._of, cls._count = StoreBoard(connect(f"{world.name}/in-order")), world.name, 0
        cls._count += 1
        return cls(cls._board, cls._count, world.rank)

    def post(self, text: str) -> None:
        self._messages.post(f"{self._number}/{self._rank}", f"+{text}")  # a store takes no empty message

    def wait(self, rank: int, deadline: float) -> str | None:
        """The message of a rank; None if there is none in time."""
        while (message := self._messages.read(f"{self._number}/{rank}")) is None:
            if time.monotonic() > deadline:
                return None
            time.sleep(LOOK_SECONDS)
        return message[1:]
