"""Several processes that train together, forked from the test: torch need not be imported again in each."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

_FORK = multiprocessing.get_context("fork")


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def together(size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 120.0) -> list[Any]:
    """What `function(*arguments)` gives in each of `size` processes that form a world, in the order of their ranks.

    Raises:
        AssertionError: a process failed, with its traceback, or gave nothing within `timeout` seconds.
    """
    port = free_port()
    pipes = [_FORK.Pipe(duplex=False) for _ in range(size)]
    processes = [
        _FORK.Process(target=_child, args=(rank, size, port, sender, function, arguments), daemon=True)
        for rank, (_, sender) in enumerate(pipes)
    ]
    for process, (_, sender) in zip(processes, pipes, strict=True):
        process.start()
        sender.close()
    results: dict[int, Any] = {}
    ranks = {receiver: rank for rank, (receiver, _) in enumerate(pipes)}
    try:
        while ranks:
            ready = wait(list(ranks), timeout)
            assert ready, f"no answer from ranks {sorted(ranks.values())} within {timeout} seconds"
            for receiver in ready:
                rank = ranks.pop(receiver)  # type: ignore[index]
                try:
                    failed, results[rank] = pickle.loads(receiver.recv_bytes())  # type: ignore[union-attr]
                except EOFError:
                    raise AssertionError(f"rank {rank} died") from None
                assert not failed, f"rank {rank} failed:\n{results[rank]}"
    finally:
        for process in processes:
            if len(results) < size:
                process.kill()
            process.join()
    return [results[rank] for rank in range(size)]


def _child(
    rank: int, size: int, port: int, sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        from flambeau.runtime.world import leave_world

        result = function(*arguments)
        leave_world()
        sender.send_bytes(pickle.dumps((False, result)))  # not by torch's shared memory, which ends with this process
    except BaseException:
        sender.send_bytes(pickle.dumps((True, traceback.format_exc())))
    finally:
        sender.close()
        sys.stdout.flush()
        os._exit(0)
