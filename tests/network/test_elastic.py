"""Machines are lost, cut off and come back: the run goes on with those that are there, on the same samples."""

from __future__ import annotations

import pytest
from course import CRAWL, SLOW, Hosts, Session, expect, start_both, start_on, torchrun

pytestmark = pytest.mark.system

ELASTIC = "1:2"

PATIENCE = ("trainer.hang_timeout=10",)
"""Seconds: enough for a first step on a busy machine, and short enough for a test."""


@pytest.mark.parametrize("cable", ["in", "out"])
def test_a_machine_is_lost_and_comes_back(session: Session, hosts: Hosts, cable: str) -> None:
    """Without it the other goes on alone, then both again. `out`: it vanishes without a word, as in a power cut."""
    h2 = hosts[1]
    session.set_pace(SLOW)
    one, two = start_both(session, hosts, *PATIENCE, nodes=ELASTIC)
    session.wait_for_save(one, two)
    if cable == "out":
        h2.unplug()
    h2.switch_off()
    session.wait_for_save(one, after=session.saved)
    session.set_pace(CRAWL)
    h2.switch_on()
    h2.plug()
    two = start_on(session, h2, 1, *session.arguments, *PATIENCE, nodes=ELASTIC)
    session.wait_until(lambda: session.sizes() == [2, 1, 2], "both to train again", one, two)
    session.set_pace(0)
    expect(0, one, two)
    session.check()


def test_a_run_that_needs_both_waits_for_the_lost_machine(session: Session, hosts: Hosts) -> None:
    """With `--max-restarts`: nothing is trained meanwhile, and then both go on."""
    h2 = hosts[1]
    session.set_pace(SLOW)
    one, two = start_both(session, hosts, *PATIENCE, "--max-restarts", "2")
    session.wait_for_save(one, two)
    h2.switch_off()
    session.wait_until(lambda: "starting again" in one.output, "h1 to start again", one)
    session.set_pace(0)
    h2.switch_on()
    expect(0, start_on(session, h2, 1, *session.arguments, *PATIENCE, "--max-restarts", "2"), one)
    assert session.sizes() == [2]
    session.check()


def test_a_cut_cable_is_survived_by_one_side_and_mended(session: Session, hosts: Hosts) -> None:
    """Neither waits for ever: one goes on alone, and takes the other in again once it is there."""
    h2 = hosts[1]
    session.set_pace(SLOW)
    one, two = start_both(session, hosts, *PATIENCE, nodes=ELASTIC)
    session.wait_for_save(one, two)
    h2.unplug()
    session.wait_for_save(one, after=session.saved)
    session.set_pace(CRAWL)
    h2.plug()
    session.wait_until(lambda: session.sizes() == [2, 1, 2], "both to train again", one, two)
    session.set_pace(0)
    expect(0, one, two)
    session.check()


def test_a_cut_cable_ends_a_run_that_needs_both(session: Session, hosts: Hosts) -> None:
    """Each side ends by itself, and the last thing on its terminal says who is missing."""
    h1, h2 = hosts
    session.set_pace(SLOW)
    one, two = start_both(session, hosts, *PATIENCE)
    session.wait_for_save(one, two)
    h2.unplug()
    expect(1, one, two)
    assert "Missing: rank 1; it is stopped, dead, or on a machine that is gone or out of reach." in one.output
    assert "rank 0 or its machine is stopped or out of reach" in two.output
    assert session.status()["state"] == "failed"
    h2.plug()
    session.set_pace(0)
    expect(0, start_on(session, h1, 0, "resume", str(session.run_dir), nodes="1"))
    assert session.sizes() == [2, 1]
    session.check()


def test_the_machine_with_the_run_folder_in_hand_is_lost(session: Session, hosts: Hosts) -> None:
    """Rank 0 keeps the record. Where its machine is lost, another has rank 0, and goes on in the same folder."""
    h1, h2 = hosts
    session.set_pace(SLOW)
    meeting = ("--nnodes=1:2", "--rdzv-backend=c10d", "--rdzv-endpoint=h2:29400", "--rdzv-id=course")
    waits = "--rdzv-conf=last_call_timeout=3,keep_alive_interval=2,keep_alive_max_attempt=3"
    launcher = torchrun(*meeting, waits, "--max-restarts=3", "-m", "flambeau", *session.arguments, *PATIENCE)
    one, two = (session.start(host, *launcher) for host in (h1, h2))
    session.wait_for_save(one, two)
    assert session.status()["host"] == "h1"
    h1.switch_off()
    session.set_pace(0)
    expect(0, two)
    assert session.status()["host"] == "h2"
    assert session.sizes() == [2, 1]
    session.check()
