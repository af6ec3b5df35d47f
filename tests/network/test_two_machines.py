"""Two machines train one model, and it is the model that one process makes, whatever becomes of the machines.

They are machines as far as the kernel can make them: processes, names and networks of their own, and a cable.
"""

from __future__ import annotations

import os
import signal

import pytest
from course import SLOW, Hosts, Session, expect, start_both, torchrun
from support.states import assert_same_runs

pytestmark = pytest.mark.system


def test_two_machines_come_to_the_weights_of_one_process(session: Session, hosts: Hosts) -> None:
    """Two processes on one and one on the other, started by `flambeau train` on each."""
    expect(0, *start_both(session, hosts, processes=(2, 1)))
    assert session.sizes() == [3]
    session.check()


def test_torchrun_starts_the_same_run(session: Session, hosts: Hosts) -> None:
    """Nothing but torchrun's own command, the same on both machines but for the number of processes."""
    rendezvous = ("--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=h1:29400", "--rdzv-id=course")
    started = [
        session.start(host, *torchrun(*rendezvous, f"--nproc-per-node={count}", "-m", "flambeau", *session.arguments))
        for host, count in zip(hosts, (2, 1), strict=True)
    ]
    expect(0, *started)
    assert session.sizes() == [3]
    session.check()


def test_a_killed_worker_is_replaced(session: Session, hosts: Hosts, whole: Session) -> None:
    """All processes start again, from the newest checkpoint in the same folder, to the bits of an undisturbed run."""
    session.set_pace(SLOW)
    one, two = start_both(session, hosts, "--max-restarts", "2")
    session.wait_for_save(one, two)
    (worker,) = two.workers()
    os.kill(worker, signal.SIGKILL)
    session.wait_for_save(one, two, after=session.saved)
    session.set_pace(0)
    expect(0, one, two)
    assert session.sizes() == [2]
    session.check()
    assert_same_runs(whole.run_dir, session.run_dir)


def test_torchrun_replaces_a_killed_worker(session: Session, hosts: Hosts, whole: Session) -> None:
    """Also where its agent keeps one store for all starts, with the addresses of processes that are gone in it."""
    session.set_pace(SLOW)
    rendezvous = ("--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=h1:29400", "--rdzv-id=course")
    launcher = torchrun(*rendezvous, "--max-restarts=2", "-m", "flambeau", *session.arguments)
    one, two = (session.start(host, *launcher) for host in hosts)
    session.wait_for_save(one, two)
    (worker,) = two.workers()
    os.kill(worker, signal.SIGKILL)
    session.wait_for_save(one, two, after=session.saved)
    session.set_pace(0)
    expect(0, one, two)
    session.check()
    assert_same_runs(whole.run_dir, session.run_dir)


@pytest.mark.parametrize("told", ["h1", "h2"])
def test_a_signal_to_one_launcher_stops_both_machines(
    session: Session, hosts: Hosts, whole: Session, told: str
) -> None:
    """They save once, at the same step, and leave with 75; the same command with `resume` goes on to the same bits."""
    session.set_pace(SLOW)
    launchers = dict(zip(("h1", "h2"), start_both(session, hosts), strict=True))
    session.wait_for_save(*launchers.values())
    launchers[told].send(signal.SIGTERM)
    expect(75, *launchers.values())
    status = session.status()
    assert (status["state"], status["step"]) == ("preempted", session.saved)
    assert {line["step"] for line in session.record()} == set(range(1, session.saved + 1))
    session.set_pace(0)
    expect(0, *start_both(session, hosts, command=("resume", str(session.run_dir))))
    session.check()
    assert_same_runs(whole.run_dir, session.run_dir)
