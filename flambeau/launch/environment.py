"""Which process of a run this is, from the environment that torchrun, srun or Flambeau's launcher sets."""

from __future__ import annotations

import os
from pathlib import Path

from flambeau.run_folder.status import this_host

AGENT = "TORCHELASTIC_RUN_ID"
"""Set by torchrun's agent, which starts the processes and may start them again."""

LAUNCHER = "FLAMBEAU_LAUNCHER"
"""Set by Flambeau's own launcher, which has torchrun's agent in it: the number of its process."""


def is_worker() -> bool:
    """Whether a launcher started this process as one of a run's."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1")) if is_worker() else 1


def is_first_here() -> bool:
    """Whether this is the one process of its machine that speaks for all of them there."""
    return is_worker() and os.environ.get("LOCAL_RANK", "0") == "0"


def agent_of_this_process() -> str | None:
    """The agent that started this process: machine, number and start of that process; None without one.

    The same for every process that the agent starts, and for those that it starts anew after them; no other's.
    """
    if AGENT not in os.environ:
        return None
    parent = os.getppid()
    try:
        # The 22nd value: ticks from the start of the machine to that of the process. The second, its name in
        # brackets, may hold spaces.
        begun = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        begun = "0"
    return f"{this_host()}:{parent}:{begun}"
