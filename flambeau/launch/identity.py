"""Which run a process belongs to that was started anew in place of another."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from flambeau.run_folder import RunFolder
from flambeau.run_folder.status import read_status, this_host


def find_begun_run(folders: Collection[Path], agents: Collection[str]) -> RunFolder | None:
    """The run among `folders` that one of `agents` began in other processes than this one; the newest, by name.

    An agent that starts processes again after a failure, or with other machines, gives them the command of a new
    run. The run goes on all the same: its status names the agents of all its machines, and as long as one of these
    is still there, it is known by it.
    """
    if not agents:
        return None
    for folder in sorted(folders, reverse=True):
        try:
            status = read_status(folder / "status.json")
        except OSError:
            continue
        own = status.pid == os.getpid() and status.host == this_host()
        if not own and not set(agents).isdisjoint(status.agents):
            return RunFolder(folder)
    return None
