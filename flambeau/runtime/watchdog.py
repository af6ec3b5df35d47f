"""What ends a job of several processes of which one raises, hangs or is gone: the others never wait for ever.

* A process that raises tells the others, and they end within two seconds.
* A process without progress for `timeout` seconds asks all where they are; one prints the answers, and all end.
* A process that finds the store of the group gone ends.

The exit status is 1, and a process that is ended from here ends at once (`os._exit`): to take a process group down
would be to wait for those that are gone. A launcher may start them anew.
"""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import distributed as dist

from flambeau.errors import EXIT_FAILED, FlambeauError
from flambeau.runtime.pulse import Board, Pulse, Section, StoreLostError, Ticks
from flambeau.runtime.stacks import Sighting, conclude, in_debugger, main_stack, name_ranks, report

TICK = 0.25
"""Seconds between two looks at this process's progress."""

WORD_EVERY = 5.0
"""Seconds between two messages of a process about its position."""

GATHER = 4.0
"""Seconds in which the processes say where they are, or that they have heard."""

GRACE = 1.0
"""Seconds for a process to end by itself after another has failed."""

LOST_GRACE = 10.0
"""Seconds for a process to end by itself after the store is lost."""

FAILED_GRACE = 30.0
"""Seconds for a process to end by itself after it failed: a checkpoint may be on its way to disk."""

LAST_ACT = 20.0
"""Seconds for `on_end`."""

LAST_RESORT = 30.0
"""Seconds after a timeout in which the processes should have found out together where they are."""

ECHOES = ("closed by peer", "reset by peer", "broken pipe", "gloo", "nccl", "socket")
"""Words of the errors that a process gets because another one is gone."""


class OtherRankError(FlambeauError):
    """Another process of the run failed or is gone, and this one could not go on."""


class Watchdog:
    """Watches this process and listens to the others.

    Every process of the world makes one, at the same place of the program. With one process it does nothing.

    Args:
        pulse: of this process.
        timeout: seconds without a `beat` after which the processes report and end; None waits for ever. May be set
            at any time.
        on_end: called before this process is ended from here, with a line that says why and with all that is to be
            printed; returns whether that has been done. In a thread of its own, for LAST_ACT seconds at most: time to
            wait for a checkpoint that is being written.
    """

    def __init__(
        self, pulse: Pulse, timeout: float | None = None, *, on_end: Callable[[str, str], bool] | None = None
    ) -> None:
        self.timeout = timeout
        self.on_end = on_end
        self._pulse = pulse
        self._rank, self._size = pulse.world.rank, pulse.world.size
        self._position = "the start"
        self._beats = 0
        self._pauses = 0
        self._idle = 0.0
        self._alarm = 0
        self._error: BaseException | None = None
        self._told = threading.Event()
        self._first: dict[str, Any] | None = None
        self._heard = False
        self._silent: list[int] = []
        self._doom: tuple[tuple[str, ...], float] | None = None
        self._closing = threading.Event()
        if self._size == 1:
            return
        self._board: Board = pulse.section("watchdog")
        self._gather = GATHER + 4 * pulse.period
        self._since_word, self._word_ticks = 0.0, Ticks(4 * pulse.period)
        pulse.listen(self._look)
        threading.Thread(target=self._count, name="flambeau-watchdog", daemon=True).start()

    # ---------------------------------------------------------------- for the main thread

    def beat(self, position: str) -> None:
        """Say that there was progress, and up to where: `step 12`."""
        self._position = position
        self._beats += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Expect no progress meanwhile: no process is ended for being idle while one is here.

        A main thread that stands in a debugger counts as paused too.
        """
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            self._beats += 1

    def failed(self, error: BaseException) -> OtherRankError | None:
        """Tell the others that this process fails with `error`: they end.

        Returns:
            What to raise from `error` where that only says that another process is gone: what became of that one.
        """
        if self._size == 1 or self._error is not None:
            return None
        self._error = error
        self._doom = (("it failed, and did not end by itself",), FAILED_GRACE)
        deadline = time.monotonic() + 2 * self._gather
        # Its thread talks to the store: this one would wait for ever for a store that hangs.
        while not self._told.wait(0.05) and self._pulse.lost is None and time.monotonic() < deadline:
            pass
        if not _is_echo(error):
            return None
        if self._silent:
            return OtherRankError(
                f"no sign of life from {name_ranks(self._silent)}: killed, stopped, or on a machine that is gone"
            )
        if self._first is not None and not self._first["echo"]:
            return OtherRankError("\n".join(_describe(self._first)))
        return OtherRankError(_describe_lost(self._pulse)) if self._pulse.lost is not None else None

    def close(self) -> None:
        """Watch no more."""
        self._closing.set()
        self._pulse.leave(self._look)

    # ---------------------------------------------------------------- a thread that waits for nobody

    def _count(self) -> None:
        """Count the seconds without progress, and those until a process whose end is certain is ended."""
        ticks = Ticks(4 * TICK)
        beats, doom, doomed_for = self._beats, self._doom, 0.0
        while not self._closing.wait(TICK):
            seconds = ticks.passed()
            if self._beats != beats or self._pauses:
                beats, self._idle = self._beats, 0.0
            else:
                self._idle += seconds
            if self._pulse.lost is not None and self._doom is None:
                self._doom = ((_describe_lost(self._pulse),), LOST_GRACE)
            if self._doom is not doom:
                doom, doomed_for = self._doom, 0.0
            doomed_for += seconds
            if doom is not None and doomed_for > doom[1]:
                self._end(*doom[0])
            if self.timeout is not None and self._idle > self.timeout + LAST_RESORT and not in_debugger():
                why = (
                    f"no progress for {self._idle:.0f} s, and no answer from the store of the process group: "
                    "rank 0 or its machine is stopped or out of reach"
                )
                self._end(why, report({self._rank: self._sighting()}, {}))

    # ---------------------------------------------------------------- in the pulse's thread

    def _look(self) -> None:
        self._since_word += self._word_ticks.passed()
        if self._since_word >= max(WORD_EVERY, 20 * self._pulse.period):
            self._since_word = 0.0
            self._board.post(f"position/{self._rank}", self._position)
        if self._error is not None:
            if not self._told.is_set():
                self._tell(self._error)
                self._told.set()
            return
        if self._first is not None:
            return
        if (failure := self._board.read("failure")) is not None:
            self._first = json.loads(failure)
            self._hear()
            if self._error is None:
                line, text = _describe(self._first)
                self._doom = ((line, text if self._rank == 0 else ""), GRACE)
            return
        if self.timeout is not None and self._idle >= self.timeout and not in_debugger():
            self._board.claim(f"alarm/{self._alarm}", str(self._rank))
        if (caller := self._board.read(f"alarm/{self._alarm}")) is not None:
            self._answer(int(caller))

    # -- failures

    def _tell(self, error: BaseException) -> None:
        """This process fails: say so, and see who hears it."""
        failure = {"rank": self._rank, "echo": _is_echo(error), **_in_words(error)}
        first = self._first = json.loads(self._board.claim("failure", json.dumps(failure)))
        self._hear()
        if first["rank"] == self._rank:
            # The store may end with this process: the others are waited for, and left time to read.
            self._silent = self._unheard()
            self._board.post("silent", json.dumps(self._silent if first["echo"] else []))
            if self._silent and self._rank == 0:
                time.sleep(GRACE)
        elif first["echo"] or self._rank == 0:
            self._silent = json.loads(_await(self._board, "silent", self._gather) or "[]")

    def _unheard(self) -> list[int]:
        """The processes that do not answer soon."""
        deadline = time.monotonic() + GRACE + 4 * self._pulse.period
        while (heard := self._board.add("heard", 0)) < self._size and time.monotonic() < deadline:
            time.sleep(0.05)
        if heard == self._size:
            return []
        return [rank for rank in range(self._size) if self._board.read(f"heard/{rank}") is None]

    def _hear(self) -> None:
        """Be counted among those who know of the failure."""
        if self._heard:
            return
        self._heard = True
        self._board.post(f"heard/{self._rank}", "")
        self._board.add("heard", 1)

    # -- hangs

    def _sighting(self) -> Sighting:
        return Sighting(self._position, self._idle, bool(self._pauses) or in_debugger(), main_stack())

    def _answer(self, caller: int) -> None:
        """Say where this process is; then end, or go on, as one decides for all."""
        board = Section(self._board, f"alarm-{self._alarm}")
        board.post(f"word/{self._rank}", json.dumps(self._sighting().to_json()))
        reason = f"no progress for {self.timeout or 0.0:g} s on {name_ranks([caller])}"
        # The lowest rank that can decides.
        wait = self._gather + 0.2 * min(self._rank, 20) if self._rank else 0.0
        verdict = _await(board, "verdict", wait)
        if verdict is None:
            if board.claim("judge", str(self._rank)) == str(self._rank):
                return self._judge(board, reason)
            verdict = _await(board, "verdict", 2 * self._gather)
        if verdict == "go on":
            return self._go_on()
        board.add("left", 1)
        self._end(f"{reason}; rank {board.read('judge')} tells where the processes are")
        return None

    def _judge(self, board: Board, reason: str) -> None:
        seen: dict[int, Sighting] = {}
        deadline = time.monotonic() + (self._gather if self._rank == 0 else 0.0)
        while True:
            for rank in range(self._size):
                if rank not in seen and (word := board.read(f"word/{rank}")) is not None:
                    seen[rank] = Sighting.from_json(json.loads(word))
            if len(seen) == self._size or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        stuck = [sighting for sighting in seen.values() if sighting.idle >= (self.timeout or 0.0)]
        if not stuck or any(sighting.paused for sighting in seen.values()):
            board.post("verdict", "go on")
            return self._go_on()
        silent = {
            rank: self._board.read(f"position/{rank}") or "the start" for rank in range(self._size) if rank not in seen
        }
        board.post("verdict", "end")
        deadline = time.monotonic() + GRACE + 4 * self._pulse.period  # the store may end with this process
        while board.add("left", 0) < len(seen) - 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        conclusion = conclude(seen, list(silent))
        self._end(reason, f"{report(seen, silent)}\n{conclusion}", summary=f"{reason}. {conclusion}")
        return None

    def _go_on(self) -> None:
        self._alarm += 1
        self._beats += 1  # the seconds without progress count anew

    # ---------------------------------------------------------------- the end

    def _end(self, why: str, details: str = "", *, summary: str | None = None) -> None:
        """End this process now, unless it is ending in good order.

        Args:
            summary: a line for the record; default: `why`.
        """
        if self._closing.is_set():
            return
        text = f"error: rank {self._rank} ends: {why}\n" + (f"{details}\n" if details else "")
        if not self._act(summary or why, text):
            # Not through sys.stderr, whose lock a thread that hangs may hold.
            os.write(2, text.encode(errors="replace"))
        os._exit(EXIT_FAILED)

    def _act(self, why: str, text: str) -> bool:
        """Call `on_end`, and wait for it up to a point; whether it has told the text."""
        told: list[bool] = []
        if (act := self.on_end) is not None:
            thread = threading.Thread(target=lambda: told.append(act(why, text)), daemon=True)
            thread.start()
            thread.join(timeout=LAST_ACT)
        return any(told)


def _await(board: Board, key: str, seconds: float) -> str | None:
    """The message under `key`, waited for."""
    deadline = time.monotonic() + seconds
    while (message := board.read(key)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return message


def _is_echo(error: BaseException) -> bool:
    """Whether an error looks like one that a process gets because another is gone."""
    words = str(error).lower()
    return isinstance(error, (dist.DistError, StoreLostError)) or (
        isinstance(error, RuntimeError) and any(echo in words for echo in ECHOES)
    )


def _in_words(error: BaseException) -> dict[str, str]:
    """A line, and all: the traceback, except of an error that speaks for itself."""
    if isinstance(error, FlambeauError):
        return {"line": str(error).split("\n")[0], "text": str(error)}
    text = "".join(traceback.format_exception(error)).rstrip()
    return {"line": "".join(traceback.format_exception_only(error)).split("\n")[0], "text": text}


def _describe(failure: dict[str, Any]) -> tuple[str, str]:
    """A line that says who failed and how, and all of it."""
    return f"rank {failure['rank']} failed: {failure['line']}", failure["text"]


def _describe_lost(pulse: Pulse) -> str:
    reason = pulse.lost.message if pulse.lost is not None else ""
    return f"rank 0 or its machine is gone ({reason})"
