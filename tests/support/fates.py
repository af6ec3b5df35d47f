"""How several processes that train together come to their ends: statuses and last words."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from support.processes import free_port


@dataclass(frozen=True)
class Fate:
    """What became of one process."""

    status: int
    """Its exit status; negative: the signal that killed it."""
    output: str
    """What it said, on standard output and standard error."""


class Crew:
    """Processes forked from the test, in which `function(*arguments, **options)` runs as one world.

    An exception ends a process as it would end a program: with a traceback and status 1. What `function` returns is
    the exit status (None: 0).
    """

    def __init__(
        self, folder: Path, size: int, function: Callable[..., int | None], *arguments: Any, **options: Any
    ) -> None:
        call = functools.partial(function, *arguments, **options)
        self._logs = [folder / f"rank-{rank}.txt" for rank in range(size)]
        for log in self._logs:  # what an earlier crew said in this folder is not what this one says
            log.write_text("")
        self._statuses: dict[int, int] = {}
        port = free_port()
        self.pids = [self._fork(rank, size, port, call) for rank in range(size)]

    def output(self, rank: int) -> str:
        """What a process has said so far."""
        return self._logs[rank].read_text() if self._logs[rank].exists() else ""

    def wait_for(self, rank: int, text: str, timeout: float = 60.0) -> None:
        """Until a process has said `text`."""
        deadline = time.monotonic() + timeout
        while text not in self.output(rank):
            assert time.monotonic() < deadline, f"rank {rank} did not say '{text}':\n{self.output(rank)}"
            time.sleep(0.01)

    def kill(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.pids[rank], number)

    def fates(self, timeout: float = 60.0, *, but: int | None = None) -> list[Fate]:
        """How all ended, in the order of their ranks; kills what is left after `timeout` seconds.

        Args:
            but: a rank that is not waited for, and killed when the others have ended.
        """
        deadline = time.monotonic() + timeout
        left = set(range(len(self.pids))) - {but}
        while left and time.monotonic() < deadline:
            left -= {rank for rank in left if self._ended(rank)}
            time.sleep(0.01)
        for rank, pid in enumerate(self.pids):
            if rank not in self._statuses:
                os.kill(pid, signal.SIGKILL)
                self._statuses[rank] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        told = "\n".join(f"--- rank {rank}\n{self.output(rank)}" for rank in range(len(self.pids)))
        assert not left, f"ranks {sorted(left)} did not end within {timeout} s:\n{told}"
        return [Fate(self._statuses[rank], self.output(rank)) for rank in range(len(self.pids))]

    def _ended(self, rank: int) -> bool:
        pid, status = os.waitpid(self.pids[rank], os.WNOHANG)
        if pid:
            self._statuses[rank] = os.waitstatus_to_exitcode(status)
        return bool(pid)

    def _fork(self, rank: int, size: int, port: int, call: Callable[[], int | None]) -> int:
        pid = os.fork()
        if pid == 0:
            os.environ |= {
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "lo",
            }
            self._become(rank, call)
        return pid

    def _become(self, rank: int, call: Callable[[], int | None]) -> NoReturn:
        status = 1
        try:
            stream = self._logs[rank].open("w", buffering=1)
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            sys.stdout = sys.stderr = stream
            status = call() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
