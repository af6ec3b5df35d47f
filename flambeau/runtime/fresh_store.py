"""A store for the process group that no earlier process has written into.

torchrun's agent by default keeps one store for as long as it lives, and starts processes again with the same one. The
new processes then find in it the addresses of those that are gone, and fail to connect to them (seen with torch 2.13
and 2.15; pytorch issue 135712). So rank 0 opens a store of its own at each start, and leaves its port in the agent's:
what the agent's store holds of an earlier start leads nowhere, and is read again.
"""

from __future__ import annotations

import os
import secrets
import time
from datetime import timedelta
from typing import Any

KEY = "flambeau/store"


def is_kept_over_restarts() -> bool:
    """Whether the store that the environment names is the agent's, of all its starts."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def fresh_store(timeout: timedelta) -> Any:
    """The store of this start; on rank 0 this process holds it.

    Args:
        timeout: how long to wait for rank 0.

    Raises:
        RuntimeError: the agent's store, or rank 0's, was not reached in time.
    """
    # Here and not above: a build of torch without support for processes lacks it.
    from torch._C._distributed_c10d import TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agents = TCPStore(host, port, None, False, timeout, wait_for_workers=False)
    if os.environ["RANK"] == "0":
        store, name = TCPStore(host, 0, None, True, timeout, wait_for_workers=False), secrets.token_hex(8)
        store.set(name, "")
        agents.set(KEY, f"{store.port}/{name}")
        return store
    deadline, patience = time.monotonic() + timeout.total_seconds(), 1.0
    while True:
        place, name = agents.get(KEY).decode().split("/")
        try:
            store = TCPStore(host, int(place), None, False, timedelta(seconds=patience), wait_for_workers=False)
            if store.check([name]):
                store.set_timeout(timeout)
                return store
        except RuntimeError:  # nobody is there any more, or very many come at once
            if time.monotonic() > deadline:
                raise
        patience = min(2 * patience, 60.0)
        time.sleep(0.1)
