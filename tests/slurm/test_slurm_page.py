"""The page on Slurm shows what happens on one."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.projects import ROOT, environment
from support.slurm import PATIENCE, Cluster

sys.path.append(str(ROOT / "tests" / "docs"))  # where the reader of pages lies
from pages import blocks, commands, missing

pytestmark = pytest.mark.system

PAGE = ROOT / "docs" / "slurm.md"


def test_what_the_page_on_slurm_shows_is_what_happens(slurm: Cluster, tmp_path: Path) -> None:
    """Every command in order, in one folder, once the job before it is where the page has it."""
    reader = Reader(slurm, tmp_path)
    shown = [command for block in blocks(PAGE) if block.language == "console" for command in commands(block)]
    assert len(shown) >= 9
    faults = []
    for command in shown:
        said = reader.obey(command.text)
        faults += [f"$ {command.text}\nnot shown: {line}\n{said}" for line in missing(command.shown, said, exact=False)]
    assert not faults, "\n\n".join(faults)


class Reader:
    """Types what the page shows; where the page has a job's number, the number of the newest job."""

    def __init__(self, slurm: Cluster, folder: Path) -> None:
        self.slurm, self.folder, self.job = slurm, folder, ""
        command = folder / "bin" / "flambeau"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m flambeau "$@"\n')
        command.chmod(0o755)
        self.env = environment(slurm.env)
        self.env["PATH"] = f"{command.parent}:{self.env['PATH']}"

    def obey(self, text: str) -> str:
        """Run a command of the page; what it says on both streams."""
        if text.startswith("scancel --batch --signal"):
            text = re.sub(r"\d+$", self.job, text)
            self.wait_for_steps()
        elif text.startswith("cat "):
            self.wait_for_end()
        done = subprocess.run(
            ["bash", "-c", text], cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, f"{text}: {done.returncode}\n{done.stdout}{done.stderr}"
        if found := re.match(r"job +(\d+)", done.stdout):
            self.job = found[1]
        return done.stdout + done.stderr

    def wait_for_steps(self) -> None:
        """Until the run has something to save."""
        deadline = time.monotonic() + PATIENCE
        while not list(self.folder.glob("runs/long/checkpoints/step-*")):
            assert time.monotonic() < deadline, self.slurm.job(self.job)
            time.sleep(0.1)

    def wait_for_end(self) -> None:
        """Until all of the job, or of the array, is done."""
        tasks = self.slurm.call("squeue", "--noheader", "--array", "--jobs", self.job, "--format=%i").split()
        for task in tasks or [self.job]:
            self.slurm.wait(task, "COMPLETED")
