"""What is said to people never decides how a run comes out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.projects import environment


def test_a_reader_that_leaves_ends_nothing(tmp_path: Path) -> None:
    """`flambeau train ... | head -1`: the other lines go nowhere, and the run goes on to its end."""
    code = """
import sys
from flambeau.console import say
sys.stdin.read()
for number in range(5):
    say(f"line {number}")
open("end", "w").close()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stdin.close()  # it speaks only now
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert (tmp_path / "end").exists()
