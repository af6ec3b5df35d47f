"""A signal that comes when the training is over does not end the process in another way than it was about to."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from support.projects import environment

PROGRAM = """
import os, signal, sys
from flambeau.launch.worker import run_worker

def work():
    if sys.argv[2] == "after":
        from flambeau.runtime.signals import StopSignals
        with StopSignals():
            pass
    os.kill(os.getpid(), int(sys.argv[1]))
    return 0

sys.exit(run_worker(work))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize(("moment", "ends_it"), [("before", True), ("after", False)])
def test_a_stop_signal_ends_a_worker_before_its_training_and_not_after(
    number: signal.Signals, moment: str, ends_it: bool
) -> None:
    """Slurm signals every process of a node, and the launcher hands the signal on: the second comes late."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(int(number)), moment], env=environment({"RANK": "0", "WORLD_SIZE": "2"})
    )
    assert done.returncode == (-number if ends_it else 0)
