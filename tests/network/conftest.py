"""Fixtures of the tests with two machines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import machines
import pytest
from course import CONFIG, PARTS, Session
from machines import Machine
from support.projects import Project


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    """Two machines, `h1` and `h2`, with a cable between them."""
    if reason := machines.why_not():
        pytest.skip(reason)
    with ExitStack() as stack:
        hosts = []
        for name in machines.NAMES:
            hosts.append(Machine(name, tmp_path / name))
            stack.callback(hosts[-1].remove)
        machines.join(*hosts)
        yield (hosts[0], hosts[1])


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """The course, run by one process."""
    session = Session.prepare(
        Project.write(tmp_path_factory.mktemp("course") / "project", parts=PARTS, config=CONFIG), "one"
    )
    session.project.run(*session.arguments, env=session.variables)
    return session


@pytest.fixture
def session(reference: Session, request: pytest.FixtureRequest) -> Session:
    """The course, to be run by several processes, in a folder with the test's name."""
    return Session.prepare(reference.project, request.node.name, reference)


@pytest.fixture(scope="session")
def whole(reference: Session, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """The course, run by two processes on this machine that nothing happens to."""
    session = Session.prepare(reference.project, "two", reference)
    session.project.run(*session.arguments, "-d", "cpu", "--processes", "2", env=session.variables)
    return session
