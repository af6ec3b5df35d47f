"""The output of the processes of a run: rank 0 has the terminal, and each process has a file in the run's folder.

`<run>/logs/rank-N.txt` holds what rank N wrote to standard output and standard error. For N >= 1 this is everything,
native code included, and nothing of it is on the terminal. Rank 0 writes to the terminal as a process alone would,
progress bar and all; its file gets the lines that Python printed there, without colours and passing bars.
Before the run's folder exists, output goes to a temporary file, or waits in memory.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from flambeau.launch import environment
from flambeau.launch.outcome import Outcomes
from flambeau.run_folder.status import now, this_host

LOGS = "logs"
"""The folder in a run's folder."""

TEMPORARY = "output-of-rank-{}-"
"""What the name of the file begins with that holds a rank's output before there is a run's folder."""

_CURSOR_UP = "\x1b[1A"
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


class RankOutput:
    """Where the output of this process goes, for a rank above 0."""

    def __init__(self, rank: int) -> None:
        """From now on everything goes to a temporary file."""
        self.rank = rank
        outcomes = Outcomes.from_environment()
        descriptor, name = tempfile.mkstemp(
            prefix=TEMPORARY.format(rank), suffix=".txt", dir=outcomes.folder if outcomes else None
        )
        self.path = Path(name)
        self.placed = False
        self._terminal = os.dup(2)  # not inherited by the processes that this one starts
        self._turn_to(descriptor)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(line_buffering=True)

    def place(self, folder: Path) -> None:
        """Move the output into the folder of a run, after what earlier processes of this rank left there."""
        target = _log_file(folder, self.rank)
        _flush()
        so_far = self.path.read_bytes()
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(descriptor, _heading().encode() + so_far)
        self._turn_to(descriptor)
        self.drop()
        self.path, self.placed = target, True

    def drop(self) -> None:
        """Remove the file, if it is still the temporary one."""
        if not self.placed:
            self.path.unlink(missing_ok=True)

    def say(self, text: str) -> None:
        """Write a text to the terminal all the same."""
        with contextlib.suppress(OSError):  # nobody may be there to read it
            os.write(self._terminal, text.encode(errors="replace"))

    def _turn_to(self, descriptor: int) -> None:
        _flush()
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)


class Copy:
    """A stream whose lines are also kept in a file: what the terminal shows in the end, not how it came there."""

    def __init__(self, stream: TextIO, log: LogOfLines) -> None:
        self._stream = stream
        self._log = log
        self._line = ""
        self._process = os.getpid()

    def write(self, text: str) -> int:
        written = self._stream.write(text)
        if self._process != os.getpid():  # forked off: what its parent had begun to say is the parent's
            self._process, self._line = os.getpid(), ""
        for number, piece in enumerate(text.split("\n")):
            if number:
                # Of what was written over itself on one line, such as a progress bar, the last is what stays.
                self._log.add([_ESCAPES.sub("", _last_on_the_line(self._line))])
                self._line = ""
            for _ in range(piece.count(_CURSOR_UP)):
                self._log.take_back()
            self._line += piece
        return written

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def finish(self) -> None:
        """Keep a last line that nobody ended."""
        if last := _ESCAPES.sub("", _last_on_the_line(self._line)):
            self._log.add([last])
        self._line = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class LogOfLines:
    """A file of lines; they wait in memory until it has a place."""

    def __init__(self) -> None:
        self._waiting: list[str] = []
        self._file: BinaryIO | None = None
        self._starts: deque[int] = deque(maxlen=100)
        """Where in the file the last lines begin."""
        self._process = os.getpid()

    def place(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._file.write(_heading().encode())
        lines, self._waiting = self._waiting, []
        self.add(lines)

    def add(self, lines: Iterable[str]) -> None:
        if self._file is None:
            self._waiting += lines
            return
        with contextlib.suppress(OSError):  # a full disk must not end a run that only wanted to say something
            for line in lines:
                self._starts.append(os.fstat(self._file.fileno()).st_size)
                self._file.write(f"{line}\n".encode(errors="replace"))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def take_back(self) -> None:
        """Remove the last line: the cursor went up, and it is written over."""
        if self._process != os.getpid():
            return  # the lines are its parent's
        if self._file is None:
            del self._waiting[-1:]
        elif self._starts:
            with contextlib.suppress(OSError):
                self._file.truncate(self._starts.pop())


class MainOutput:
    """Where the output of rank 0 goes."""

    def __init__(self) -> None:
        self._log = LogOfLines()
        self._streams = sys.stdout, sys.stderr
        self._copies = Copy(sys.stdout, self._log), Copy(sys.stderr, self._log)
        sys.stdout, sys.stderr = self._copies
        self.path: Path | None = None

    @property
    def placed(self) -> bool:
        return self.path is not None

    def place(self, folder: Path) -> None:
        self.path = _log_file(folder, 0)
        self._log.place(self.path)

    def keep(self, text: str) -> None:
        """Write to the file alone."""
        self._log.add(text.split("\n"))

    def end(self) -> None:
        """Give the streams back as they were, unless somebody else has replaced them since."""
        for copy in self._copies:
            copy.finish()
        if sys.stdout is self._copies[0]:
            sys.stdout = self._streams[0]
        if sys.stderr is self._copies[1]:
            sys.stderr = self._streams[1]
        self._log.close()


_output: RankOutput | MainOutput | None = None


def redirect_rank(rank: int) -> None:
    """Give this process's output its place, as early as possible: rank 0 keeps the terminal, others leave it."""
    global _output
    if _output is None:
        _output = RankOutput(rank) if rank else MainOutput()


@contextlib.contextmanager
def kept_output() -> Iterator[None]:
    """In the block, what this process prints is kept for the run's folder, also if it is alone.

    It begins before anything is built or imported, so that what a user's modules print then is kept too. One of several
    processes keeps its output from its first line to its end anyway.
    """
    global _output
    if _output is not None:
        yield
        return
    _output = alone = MainOutput()
    try:
        yield
    finally:
        alone.end()
        _output = None


def place_rank_log(folder: Path) -> None:
    """Keep this process's output in the run folder `folder` from now on, with what was printed so far.

    Nothing happens in a process whose output is not kept: in a notebook, say.
    """
    if _output is not None and not _output.placed:
        _output.place(folder)
    outcomes = Outcomes.from_environment()
    if outcomes is not None and environment.is_first_here():
        outcomes.run_folder = folder


def output() -> RankOutput | MainOutput | None:
    """Where this process's output goes; None where it is not kept."""
    return _output


def _log_file(folder: Path, rank: int) -> Path:
    (folder / LOGS).mkdir(exist_ok=True)
    return folder / LOGS / f"rank-{rank}.txt"


def _heading() -> str:
    return f"--- process {os.getpid()} on {this_host()}, {now()}, rank {environment.rank()} of {environment.size()}\n"


def _last_on_the_line(line: str) -> str:
    return re.split(r"\r|\x1b\[2K", line.rstrip("\r"))[-1]


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
