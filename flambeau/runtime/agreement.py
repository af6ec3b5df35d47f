"""How all processes come to the same decision after the same step, with no collective in the steady step.

One process alone may get a signal, or know that it is time to save. What follows from it has to be done by all at the
same step boundary, or they would wait for each other for ever.

**The protocol.** Decisions are taken in rounds. A round begins when a process that wants something says so on the
board. Every process's thread sees it and sets a flag. At its next boundary a flagged process waits for its device,
leaves its requests on the board, and is *armed*: from then on it waits for its device and reads the board at each
boundary. Once all are armed, rank 0, at its boundary after step `s`, publishes that everybody acts after step
`T = s + 1`, and only then goes on to step `T`.

**Why all act at T.** Every step has a gradient exchange, which completes nowhere before all have contributed to it.
Rank 0 contributes to step T after it has published. So a process that stands, its device idle, at the boundary after
T finds the decision on the board: it is armed, hence it reads. And nobody stands there before being armed: a process
armed at its boundary after step `r` has completed step r, so rank 0 had begun it, and `s >= r`: the boundary at which
rank 0 sees it armed comes later still. No process waits here for another, so a run that ends before T just ends, as
does a process whose partner has died. See docs/decisions/0008-agreement-at-a-boundary.md.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from flambeau.errors import FlambeauError
from flambeau.runtime.pulse import Board, Pulse, Section

NOTHING: Mapping[str, str] = MappingProxyType({})

PATIENCE = 0.1
"""Seconds that rank 0 waits at a boundary for the others to arm: they come to theirs at nearly the same time, and where
steps are long one more of them costs more than that."""


class Round:
    """One process's side of one round: the protocol without clock, thread and device.

    Args:
        board: shared by all processes, empty at first.
        number: of the round, from 0.
        rank, size: of the process.
    """

    def __init__(self, board: Board, number: int, rank: int, size: int) -> None:
        self.number = number
        self._board = board
        self._rank = rank
        self._size = size
        self._armed = False
        self._step: int | None = None
        self._decisions: dict[str, str] = {}

    def call(self) -> None:
        """Begin the round, for everybody."""
        self._board.post("called", "")

    def called(self) -> bool:
        """Whether anybody began it."""
        return self._board.read("called") is not None

    def arm(self, requests: Mapping[str, str]) -> None:
        """Leave this process's requests; from now on `decide` has to be called at each boundary."""
        if requests:
            place = self._board.add("requests", 1)
            self._board.post(f"request/{place}", json.dumps(dict(requests)))
        self._armed = True
        self._board.add("armed", 1)

    @property
    def armed(self) -> bool:
        return self._armed

    def all_are_armed(self) -> bool:
        """Whether rank 0 can fix the step."""
        return self._board.add("armed", 0) == self._size

    def decide(self, step: int) -> dict[str, str] | None:
        """What takes effect after `step`, which this process and its device have done; None if nothing does yet.

        Raises:
            FlambeauError: the step of the decision has passed: the processes' steps are not coupled.
        """
        if self._step is None:
            if self._rank == 0:
                if self.all_are_armed():
                    self._publish(step + 1)
            elif (message := self._board.read("decision")) is not None:
                decision = json.loads(message)
                self._step, self._decisions = decision["step"], decision["requests"]
        if self._step is None or step < self._step:
            return None
        if step > self._step:
            raise FlambeauError(
                f"the processes agreed to act after step {self._step}, and this one is past step {step} already",
                remedy="every optimizer step has to exchange gradients among all processes",
            )
        return self._decisions

    def _publish(self, step: int) -> None:
        """Rank 0: fix the step."""
        for place in range(1, self._board.add("requests", 0) + 1):
            for kind, reason in json.loads(self._board.read(f"request/{place}") or "{}").items():
                self._decisions.setdefault(kind, reason)
        self._board.post("decision", json.dumps({"step": step, "requests": self._decisions}))
        self._step = step


class Agreement:
    """Requests of single processes, as decisions of all.

    Every process of the world makes one, at the same place of the program.

    Args:
        pulse: of this process. With one process, what is requested is due at the next boundary.
        device: where this process computes. The host may be steps ahead of it, so it is waited for while something
            is being agreed, and only then.
    """

    def __init__(self, pulse: Pulse, device: torch.device) -> None:
        self._pulse = pulse
        self._device = device
        self._requests: deque[tuple[str, str]] = deque()  # no lock that a signal handler could wait for
        self._sources: dict[str, Callable[[], str | None]] = {}
        self._number = 0
        self._called = -1
        """The last round that is known to have begun."""
        if pulse.world.size > 1:
            self._board = pulse.section("agreement")
            self._round = self._begin_round()
            pulse.listen(self._look)

    def request(self, kind: str, reason: str) -> None:
        """Ask for something to be done by all; does not wait. Of several reasons for the same the first counts.

        From any thread, on any process, any number of times. What is asked for while something is being agreed is
        agreed next.

        Args:
            kind: `preempt`, `stop`, `save`: a word that all processes understand.
            reason: for people.
        """
        self._requests.append((kind, reason))
        if self._pulse.world.size == 1:
            self._called = self._number

    def hear(self, kind: str, source: Callable[[], str | None]) -> None:
        """Request `kind` as soon as `source()` gives a reason, also in the middle of a step.

        With several processes a thread asks the source; a process alone requests what it hears itself.
        """
        self._sources[kind] = source

    def due(self, step: int) -> Mapping[str, str]:
        """The decisions that take effect now: the same ones after the same step in all processes.

        To be called at every boundary, by all.

        Args:
            step: the optimizer steps that are done.

        Returns:
            Reasons by kind; mostly none.
        """
        return self._agree(step) if self._called >= self._number else NOTHING

    @property
    def pending(self) -> bool:
        """Whether this process knows that something is being agreed: `due` then waits for the device."""
        return self._called >= self._number

    def close(self) -> None:
        """Ask for nothing and hear of nothing any more."""
        self._pulse.leave(self._look)

    def _agree(self, step: int) -> Mapping[str, str]:
        if self._pulse.world.size == 1:
            self._number += 1
            return self._take_requests()
        torch.get_device_module(self._device).synchronize(self._device)
        if not self._round.armed:
            self._round.arm(self._take_requests())
        if self._pulse.world.is_main:
            self._wait_for_all()
        decisions = self._round.decide(step)
        if decisions is None:
            return NOTHING
        self._number += 1
        self._round = self._begin_round()
        return decisions

    def _wait_for_all(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self._round.all_are_armed() and time.monotonic() < deadline:
            time.sleep(0.005)

    def _take_requests(self) -> dict[str, str]:
        taken: dict[str, str] = {}
        while self._requests:
            kind, reason = self._requests.popleft()
            taken.setdefault(kind, reason)
        return taken

    def _begin_round(self) -> Round:
        world = self._pulse.world
        return Round(Section(self._board, str(self._number)), self._number, world.rank, world.size)

    def _look(self) -> None:
        """In the pulse's thread: begin the round, or see that somebody began it."""
        for kind, source in tuple(self._sources.items()):
            if (reason := source()) is not None:
                del self._sources[kind]
                self.request(kind, reason)
        round_ = self._round
        if self._called >= round_.number:
            return
        if self._requests:
            round_.call()
        elif not round_.called():
            return
        self._called = round_.number
