"""Short messages between processes beside the gradients' path: a board in the group's store, and a thread that looks.

The store of the process group (a TCP server, as a rule in rank 0's process) keeps the messages. Each
process has a connection of its own to it: the group's own is locked for as long as somebody waits through it, and a
process that hangs may do just that.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol, Self

from torch import distributed as dist

from flambeau.errors import FlambeauError
from flambeau.runtime.world import World

SHORTEST_PERIOD = 0.25
"""Seconds between two looks at the board."""

LOOKS_PER_SECOND = 4000
"""Most looks at the board by all processes together; one takes the server about 8 µs."""


class StoreLostError(FlambeauError):
    """The store of the process group is gone: the process that held it has ended, or its machine."""


class Board(Protocol):
    """Where processes leave messages for each other. Nothing here waits for a message."""

    def post(self, key: str, value: str) -> None:
        """Leave a message; on return it is there for everyone."""

    def read(self, key: str) -> str | None:
        """The message under `key`, if there is one."""

    def add(self, key: str, amount: int) -> int:
        """Add to the counter `key` (0 at first); returns its new value."""

    def claim(self, key: str, value: str) -> str:
        """Leave a message unless there is one; returns what is there afterwards."""


class StoreBoard:
    """A board in a store of torch.distributed."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def post(self, key: str, value: str) -> None:
        with _store_is_there():
            self._store.set(key, value)
            # `set` is sent and not answered. A store handles what comes through one connection in order, so an
            # answer to a question asked later says that the message is there.
            self._store.check([key])

    def read(self, key: str) -> str | None:
        with _store_is_there():
            if not self._store.check([key]):  # `get` would wait
                return None
            return self._store.get(key).decode()  # type: ignore[no-any-return]

    def add(self, key: str, amount: int) -> int:
        with _store_is_there():
            return self._store.add(key, amount)  # type: ignore[no-any-return]

    def claim(self, key: str, value: str) -> str:
        with _store_is_there():
            return self._store.compare_set(key, "", value).decode()  # type: ignore[no-any-return]


class Section:
    """The messages of a board whose keys begin with `name/`."""

    def __init__(self, board: Board, name: str) -> None:
        self._board = board
        self._name = name

    def post(self, key: str, value: str) -> None:
        self._board.post(f"{self._name}/{key}", value)

    def read(self, key: str) -> str | None:
        return self._board.read(f"{self._name}/{key}")

    def add(self, key: str, amount: int) -> int:
        return self._board.add(f"{self._name}/{key}", amount)

    def claim(self, key: str, value: str) -> str:
        return self._board.claim(f"{self._name}/{key}", value)


class Pulse:
    """The thread of a process that looks at the board now and then, and calls those who want to know.

    All processes make one at the same place of the program, and then their sections in the same order. With one
    process there is neither board nor thread.

    Args:
        world: the processes.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.period = max(SHORTEST_PERIOD, world.size / LOOKS_PER_SECOND)
        self.lost: StoreLostError | None = None
        """Why the thread ended, if not by `close`."""
        self._listeners: list[Callable[[], None]] = []
        self._sections = 0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        if world.size == 1:
            return
        # A store may outlive the processes, where torchrun restarts them: what others left there is not to be read.
        self._board = StoreBoard(connect(world.broadcast(secrets.token_hex(8))))
        self._thread = threading.Thread(target=self._run, name="flambeau-pulse", daemon=True)
        self._thread.start()

    def section(self, name: str) -> Board:
        """A part of the board that nobody else has."""
        self._sections += 1
        return Section(self._board, f"{self._sections}-{name}")

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` in the thread every `period` seconds from now on, until the store is lost."""
        self._listeners.append(listener)

    def leave(self, listener: Callable[[], None]) -> None:
        """Call `listener` no more."""
        with contextlib.suppress(ValueError):
            self._listeners.remove(listener)

    def close(self) -> None:
        """End the thread. Does not wait for one that waits for a store which is gone."""
        self._closing.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=4 * self.period)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while not self._closing.wait(self.period):
                for listener in tuple(self._listeners):
                    listener()
        except StoreLostError as error:
            self.lost = error


class Ticks:
    """Seconds in which this process could have run.

    A process that was stopped and goes on (a suspended job, a closed laptop) has not been idle meanwhile, so no
    interval between two readings counts for more than `longest`.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._last = time.monotonic()

    def passed(self) -> float:
        """Seconds since the last reading."""
        now = time.monotonic()
        seconds, self._last = min(now - self._last, self._longest), now
        return seconds


def connect(name: str) -> Any:
    """A connection of one's own to the store of the process group, for keys that nobody else's name begins with."""
    # Here and not above: a build of torch without support for processes lacks it.
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    store: Any = dist.distributed_c10d._get_default_store()
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    if isinstance(store, TCPStore):
        # The timeout is that of connecting. What is asked later waits until the connection breaks.
        store = TCPStore(store.host, store.port, None, False, timedelta(seconds=60), wait_for_workers=False)
    return PrefixStore(f"flambeau/{name}", store)


@contextmanager
def _store_is_there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # DistNetworkError, DistStoreError
        reason = str(error).split("\n")[0]
        raise StoreLostError(f"the store of the process group does not answer: {reason}") from error
