"""Where the output of a rank goes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress
from support.projects import environment

from flambeau.launch.outcome import FOLDER, Outcomes
from flambeau.launch.ranks import Copy, LogOfLines


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_copy_holds_what_a_terminal_shows_in_the_end(tmp_path: Path) -> None:
    """Lines that a progress bar pushes up are kept whole; the bar, colours and cursor movements are not."""
    terminal, log = Terminal(), LogOfLines()
    stream = Copy(terminal, log)
    console = Console(file=stream, force_terminal=True, width=80)  # type: ignore[arg-type]
    with Progress(console=console, auto_refresh=False, transient=True) as bar:
        task = bar.add_task("training", total=9)
        bar.update(task, completed=3, refresh=True)
        console.print("[red]epoch 1[/red]")
        bar.update(task, completed=6, refresh=True)
    log.place(tmp_path / "rank-0.txt")
    print("10 %\r50 %\rdone", file=stream)  # type: ignore[call-overload]
    stream.writelines(["one\n", "two\n"])
    heading, *lines = (tmp_path / "rank-0.txt").read_text().split("\n")
    assert heading.startswith(f"--- process {os.getpid()} on ")
    assert [line for line in lines if line] == ["epoch 1", "done", "one", "two"]
    assert "training" in terminal.getvalue() and stream.isatty()


def run(folder: Path, program: str, *, rank: int) -> subprocess.CompletedProcess[str]:
    """A program that is one of two processes."""
    (folder / "outcomes").mkdir()
    start = "import os, sys; from flambeau.launch.ranks import *; from pathlib import Path;"
    return subprocess.run(
        [sys.executable, "-c", f"{start} redirect_rank({rank}); {program}"],
        cwd=folder,
        env=environment({FOLDER: str(folder / "outcomes"), "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}),
        capture_output=True,
        text=True,
        check=True,
    )


PRINT = "print('printed'); os.write(1, b'native\\n'); os.system('echo a child'); print('error', file=sys.stderr);"


def test_nothing_of_a_rank_above_0_is_on_the_terminal(tmp_path: Path) -> None:
    place = "place_rank_log(Path('.')); print('later'); os.write(2, b'native later')"
    done = run(tmp_path, PRINT + place, rank=1)
    assert done.stdout == done.stderr == ""
    lines = (tmp_path / "logs" / "rank-1.txt").read_text().split("\n")
    assert "rank 1 of 2" in lines[0]
    assert lines[1:] == ["printed", "native", "a child", "error", "later", "native later"]
    assert not list((tmp_path / "outcomes").glob("output-*"))
    assert Outcomes(tmp_path / "outcomes").run_folder == tmp_path


def test_it_waits_in_a_file_until_there_is_a_folder(tmp_path: Path) -> None:
    run(tmp_path, PRINT, rank=1)
    (waiting,) = (tmp_path / "outcomes").glob("output-of-rank-1-*")
    assert waiting.read_text().split() == ["printed", "native", "a", "child", "error"]


def test_the_next_process_of_a_rank_writes_below(tmp_path: Path) -> None:
    run(tmp_path, "place_rank_log(Path('.')); print('first')", rank=1)
    (tmp_path / "outcomes").rename(tmp_path / "earlier")
    run(tmp_path, "place_rank_log(Path('.')); print('second')", rank=1)
    lines = (tmp_path / "logs" / "rank-1.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("---")] == ["first", "second"]


def test_rank_0_has_the_terminal_and_a_copy(tmp_path: Path) -> None:
    done = run(tmp_path, PRINT + "place_rank_log(Path('.')); print('later')", rank=0)
    assert "printed" in done.stdout and "native" in done.stdout and "error" in done.stderr
    lines = (tmp_path / "logs" / "rank-0.txt").read_text().splitlines()
    assert lines[1:] == ["printed", "error", "later"]


def test_a_process_alone_keeps_no_such_files(tmp_path: Path) -> None:
    program = "from pathlib import Path; from flambeau.launch.ranks import place_rank_log; place_rank_log(Path('.'))"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment(), check=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["plain", "with 'quotes'\nand lines", "é ✓"])
def test_outcomes_are_read_as_they_were_reported(tmp_path: Path, text: str) -> None:
    from flambeau.launch.outcome import Outcome

    outcomes = Outcomes(tmp_path)
    outcome = Outcome(rank=3, kind="error", status=1, summary=text, text=text, output="/somewhere")
    outcomes.report(outcome)
    outcomes.announce_restart()
    assert outcomes.read() == {3: outcome} and outcomes.restarting
    outcomes.clear()
    assert outcomes.read() == {} and not outcomes.restarting
