"""What the page on several machines shows is what happens on two machines."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from course import Hosts, expect
from machines import Process

DOCS = Path(__file__).resolve().parents[1] / "docs"

pytestmark = pytest.mark.system


@pytest.fixture
def commands_of_a_reader(tmp_path: Path) -> str:
    """A search path on which `flambeau` and `torchrun` are this environment's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, module in (("flambeau", "flambeau"), ("torchrun", "torch.distributed.run")):
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_the_commands_of_the_page_train_on_two_machines(
    hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands_of_a_reader: str
) -> None:
    """The lines of a block, each `# on` its machine, run at once; the block below it is what is shown on the first."""
    monkeypatch.syspath_prepend(DOCS)
    from pages import ROOT, blocks, missing

    project = tmp_path / "project"
    project.mkdir()
    # As tests/docs does: pages leave the length of a run open.
    env = {"PATH": commands_of_a_reader, "FLAMBEAU__TRAINER__EPOCHS": "1"}
    by_name = {host.name: host for host in hosts}
    page = blocks(ROOT / "docs" / "several-machines.md")
    followed = 0
    for block, below in zip(page, [*page[1:], None], strict=True):
        if block.language != "sh":
            continue
        started: list[Process] = []
        for line, name in lines_of(block.text):
            started.append(by_name[name].start("sh", "-c", line, folder=project, env=env))
        expect(0, *started)
        if below is not None and below.line <= block.line + block.text.count("\n") + 3:
            shown = tuple(below.text.split("\n"))
            assert not missing(shown, started[0].output, exact=False), started[0].output
        followed += 1
    assert followed == 4


def lines_of(script: str) -> Iterator[tuple[str, str]]:
    """Command and machine of each line `COMMAND   # on MACHINE`."""
    for line in script.splitlines():
        found = re.fullmatch(r"(.+?)\s+# on (h\d)", line)
        assert found, f"no machine is named: {line}"
        yield found[1], found[2]
