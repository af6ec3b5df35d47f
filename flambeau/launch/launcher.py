"""The process that starts the others of a run on this machine, and gives their exit status.

torchrun's agent starts and watches the workers, in a thread; this process's main thread hands signals on, ends
workers that outlive a failure, and says at last what the cause was.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from flambeau.console import say
from flambeau.errors import EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED, EXIT_USAGE, FlambeauError, RunFolderError
from flambeau.launch.environment import LAUNCHER
from flambeau.launch.network import LOOPBACK, interface_towards
from flambeau.launch.outcome import FOLDER, Outcome, Outcomes
from flambeau.launch.plan import Plan
from flambeau.launch.ranks import LOGS, TEMPORARY
from flambeau.launch.worker import EXIT_INTERRUPTED
from flambeau.run_folder import RunFolder
from flambeau.run_folder.status import is_alive, this_host

if TYPE_CHECKING:
    from flambeau.launch.agent import Agent

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

GRACE = 5.0
"""Seconds for the other workers of this machine to end by themselves after one has failed."""

PATIENCE = 10.0
"""Seconds after which it is said that other machines are waited for."""

CUT_OFF = 10.0
"""Seconds for the agent to notice that the workers have failed."""

MEETING_LIMIT = 600.0
"""Seconds in which machines that start again have to meet: torch's limit."""

LAST_LINES = 30
"""Lines of a worker's output that are shown if it failed before the run had a folder."""


def launch(plan: Plan, arguments: Sequence[str]) -> int:
    """Run `flambeau ARGUMENTS` in as many processes as the plan says; returns the exit status of the whole.

    Raises:
        UsageError: a device of the plan is not there; nothing was started then.
    """
    _check_devices(plan)
    folder = Path(tempfile.mkdtemp(prefix="flambeau-"))  # readable for this user alone
    try:
        return _Launcher(plan, Outcomes(folder), _command(arguments)).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_devices(plan: Plan) -> None:
    if plan.device == "cpu":
        return
    from flambeau.runtime.devices import resolve_device

    for number in range(plan.processes):
        resolve_device(plan.device, number if plan.processes > 1 else None)


def _command(arguments: Sequence[str]) -> list[str]:
    """The command of a worker: this one's, in the same interpreter."""
    # `python -m` puts the working folder before all other places that modules come from. The workers do so only if
    # this process does: a file `random.py` in the folder would otherwise be found in them alone.
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    as_module = spec is not None and spec.name == "flambeau.__main__"
    return [sys.executable, *([] if as_module else ["-P"]), "-m", "flambeau", *arguments]


def _variables(plan: Plan, outcomes: Outcomes) -> dict[str, str]:
    """What the workers find in their environment besides what torchrun's agent puts there."""
    variables = {FOLDER: str(outcomes.folder), LAUNCHER: str(os.getpid())}
    if plan.processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        variables["OMP_NUM_THREADS"] = "1"  # as torchrun: several processes with all CPUs each are slow
    interface = interface_towards(plan.master[0] if plan.master else LOOPBACK)
    if interface is not None and "GLOO_SOCKET_IFNAME" not in os.environ:
        # Gloo would take the address of this machine's name: with Debian's /etc/hosts that is loopback, and without
        # a name service it is none.
        variables["GLOO_SOCKET_IFNAME"] = interface
    return variables


class _Launcher:
    def __init__(self, plan: Plan, outcomes: Outcomes, command: list[str]) -> None:
        self._plan, self._outcomes, self._command = plan, outcomes, command
        self._signal: signal.Signals | None = None
        self._hurried = False
        self._agent: Agent | None = None
        self._agent_error: BaseException | None = None
        self._signalled: set[int] = set()
        self._failing: tuple[frozenset[int], float] | None = None
        self._killed: set[int] = set()
        self._silent: set[int] = set()
        self._announced: dict[int, int] = {}
        self._began = time.monotonic()
        self._unnoticed = math.inf

    def run(self) -> int:
        previous = {number: signal.signal(number, self._handle) for number in FORWARDED}
        try:
            thread = threading.Thread(target=self._run_agent, name="flambeau-agent", daemon=True)
            thread.start()
            while thread.is_alive():
                thread.join(0.1)
                if self._signal is not None and (status := self._stop()) is not None:
                    return status
                self._end_stragglers()
                self._announce()
                if self._is_cut_off():
                    break
            return self._conclude()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _run_agent(self) -> None:
        # Its warnings tell what is told here too, each in its own form.
        logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        if self._plan.nodes != (1, 1) or self._plan.max_restarts:
            # A store that lives through restarts keeps the addresses of processes that are gone, and a machine that
            # comes back is never told where it is (torch 2.13, DynamicRendezvousHandler.next_rendezvous). So each
            # start gets a store of its own, in rank 0.
            os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        try:
            from flambeau.launch.agent import make_agent, run_agent

            self._agent = make_agent(
                self._plan,
                self._command,
                self._outcomes,
                _variables(self._plan, self._outcomes),
                may_restart=self._may_restart,
                on_restart=self._say_restart,
            )
            run_agent(self._agent)
        except BaseException as error:
            self._agent_error = error
        finally:
            logging.disable(before)

    # ---------------------------------------------------------------- signals

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal is not None:
            self._hurried = True
        elif self._signal is None:
            self._signal = signal.Signals(number)

    def _stop(self) -> int | None:
        """Hand the signal on, once to each worker: they save and leave in their own time."""
        assert self._signal is not None
        workers = self._workers()
        if not workers:  # the machines are still meeting: there is nothing to wait for
            say(f"stopped by {self._signal.name} before the training began", error=True)
            return 128 + self._signal
        if self._hurried:
            self._end_all()
            self._record_failure("KeyboardInterrupt")
            say("interrupted", error=True)
            return EXIT_INTERRUPTED
        for pid in set(workers.values()) - self._signalled:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, self._signal)
            self._signalled.add(pid)
        return None

    def _may_restart(self) -> bool:
        return self._signal is None and all(
            outcome.status not in (EXIT_USAGE, EXIT_INTERRUPTED) for outcome in self._outcomes.read().values()
        )

    def _say_restart(self, number: int | None) -> None:
        if number is None:
            say("another machine starts again, or joins: all go on from the newest checkpoint", error=True)
            return
        cause = self._cause()
        why = _headline(cause) if cause is not None else "a process failed"
        say(f"{why}; starting again from the newest checkpoint ({number} of {self._plan.max_restarts})", error=True)

    # ---------------------------------------------------------------- the workers

    def _workers(self) -> dict[int, int]:
        return self._agent.workers if self._agent is not None else {}

    def _announce(self) -> None:
        """Say which ranks are here, where the run is shown on another machine."""
        workers = self._workers()
        if not workers and self._plan.master is not None and time.monotonic() - self._began > PATIENCE:
            self._began = math.inf
            address, port = self._plan.master
            say(f"waiting for the other machines at {address}:{port}")
        if not workers or 0 in workers or self._announced == workers:
            return
        self._announced = dict(workers)
        ranks = f"rank {min(workers)}" if len(workers) == 1 else f"ranks {min(workers)} to {max(workers)}"
        say(f"{ranks}; the run is shown where rank 0 is")

    def _end_stragglers(self) -> None:
        """End what still runs seconds after a worker has failed: it may wait for that one, for a long time."""
        workers = self._workers()
        pids = frozenset(workers.values())
        outcomes = self._outcomes.read()
        alive = {rank: pid for rank, pid in workers.items() if is_alive(pid)}
        failed = any(not outcome.is_good for outcome in outcomes.values())
        self._silent = {rank for rank in workers if rank not in alive and rank not in outcomes} - self._killed
        if not alive or not (failed or self._silent):
            self._failing = None
        elif self._failing is None or self._failing[0] != pids:
            self._failing = pids, time.monotonic()
        elif time.monotonic() - self._failing[1] > GRACE:
            self._killed |= alive.keys()
            _kill(alive.values())

    def _is_cut_off(self) -> bool:
        """Whether the workers failed a while ago and the agent took no notice.

        It waits for an answer from machine 0 then, without end where the connection is silent and not closed (torch
        2.13, TCPStore::doWait).
        """
        workers = self._workers()
        failed = self._silent or any(not outcome.is_good for outcome in self._outcomes.read().values())
        if self._plan.master is None or not failed or any(is_alive(pid) for pid in workers.values()):
            self._unnoticed = math.inf
            return False
        self._unnoticed = min(self._unnoticed, time.monotonic())
        limit = CUT_OFF + (MEETING_LIMIT if self._plan.max_restarts else 0.0)
        return time.monotonic() - self._unnoticed > limit

    def _end_all(self) -> None:
        """Leave nothing behind: neither a worker nor what it started."""
        pids = self._workers().values()
        _kill(pids)
        deadline = time.monotonic() + GRACE
        while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.01)

    # ---------------------------------------------------------------- the end

    def _conclude(self) -> int:
        workers = self._workers()
        outcomes = self._outcomes.read()
        statuses = {outcome.status for outcome in outcomes.values()}
        if workers and workers.keys() <= outcomes.keys() and statuses <= {EXIT_DONE, EXIT_PREEMPTED}:
            return EXIT_PREEMPTED if EXIT_PREEMPTED in statuses else EXIT_DONE
        self._end_all()
        cause = self._cause()
        if cause is None:
            return self._conclude_without_cause()
        self._record_failure(_headline(cause).replace(" failed: ", ": ", 1))
        self._show(cause, alike=[outcome for outcome in outcomes.values() if outcome.text == cause.text])
        return cause.status if cause.status in (EXIT_USAGE, EXIT_INTERRUPTED) else EXIT_FAILED

    def _conclude_without_cause(self) -> int:
        if self._signal is not None:  # it came before the workers were ready for it
            say(f"stopped by {self._signal.name} before the training began", error=True)
            return 128 + self._signal
        if isinstance(self._agent_error, Exception):
            raise _explain(self._plan, self._agent_error) from self._agent_error
        say("error: the processes ended and did not say how", error=True)
        return EXIT_FAILED

    def _cause(self) -> Outcome | None:
        """What failed first of all, as far as it is known on this machine."""
        outcomes = self._outcomes.read()
        failed = sorted(
            (outcome for outcome in outcomes.values() if not outcome.is_good), key=lambda outcome: outcome.time
        )
        own = [outcome for outcome in failed if outcome.kind == "error"]
        silent = [self._silent_end(rank) for rank in sorted(self._workers().keys() - outcomes.keys() - self._killed)]
        silent = [outcome for outcome in silent if outcome.summary]
        # Of those that were told why, one may have the whole story: where all processes stand, or the traceback.
        told = sorted((outcome for outcome in failed if outcome.kind == "told"), key=lambda o: -o.text.count("\n"))
        return next(iter([*own, *silent, *told, *failed]), None)

    def _silent_end(self, rank: int) -> Outcome:
        """How a worker ended that did not say so itself; no summary if others have ended it."""
        code = self._agent.exit_codes.get(rank) if self._agent is not None else None
        if code == -signal.SIGTERM or (code is None and rank not in self._silent):
            summary = ""
        else:
            summary = _death(code or 0)
        return Outcome(rank=rank, kind="error", status=EXIT_FAILED, summary=summary, output=self._output(rank))

    def _output(self, rank: int) -> str | None:
        """Where the output of a worker went."""
        run = self._outcomes.run_folder
        names = [run / LOGS / f"rank-{rank}.txt"] if run is not None else []
        names += self._outcomes.folder.glob(f"{TEMPORARY.format(rank)}*")
        return next((str(path) for path in names if path.is_file()), None)

    def _show(self, cause: Outcome, *, alike: list[Outcome]) -> None:
        """The last words on the terminal."""
        log = Path(cause.output) if cause.output else None
        sys.stdout.flush()
        unseen = log is not None and (not cause.text or log.is_relative_to(self._outcomes.folder))
        if log is not None and unseen and (lines := _last_lines(log, cause.text)):
            say(f"--- the last lines of rank {cause.rank}:\n{lines}\n---", error=True)
        is_message = cause.text.startswith("error: ")
        if cause.kind == "told":
            say(cause.text.rstrip().removeprefix("error: "), error=True)
        elif is_message and (cause.rank == 0 or len(alike) == len(self._workers())):
            say(cause.text.rstrip(), error=True)
        elif "\n" not in cause.text.rstrip():
            say(f"{_headline(cause)}{_where(log)}", error=True)
        else:
            place = "" if self._plan.nodes == (1, 1) else f" on {this_host()}"
            say(f"rank {cause.rank}{place} failed{_where(log)}:\n{cause.text.rstrip()}", error=True)

    def _record_failure(self, reason: str) -> None:
        """Write the cause into the run's status, where rank 0 could not."""
        path = self._outcomes.run_folder
        if path is None or 0 not in self._workers():
            return
        with contextlib.suppress(RunFolderError, OSError):  # another process has gone on with the run
            folder = RunFolder.open(path)
            with folder.lock():
                if folder.status.state in ("running", "failed", "dead"):
                    folder.update_status(state="failed", error=reason)


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # each worker leads a group of processes


def _headline(outcome: Outcome) -> str:
    """`rank 1 failed: ValueError: the message`."""
    if outcome.kind == "told":
        return outcome.summary
    return f"rank {outcome.rank} failed: {outcome.summary}"


def _death(code: int) -> str:
    if code >= 0:
        return f"it left in the middle, with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _where(log: Path | None) -> str:
    """Where the whole output of a rank can be read, if that is not the terminal."""
    if log is None or not log.is_file() or log.name == "rank-0.txt":
        return ""
    relative = os.path.relpath(log)
    return f" (its output: {log if relative.startswith('..') else relative})"


def _last_lines(log: Path, without: str) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(errors="replace").replace(without, "").splitlines()[-LAST_LINES:])
    return ""


def _explain(plan: Plan, error: Exception) -> FlambeauError:
    """What is wrong if the agent itself failed."""
    if plan.master is None:
        return FlambeauError(f"the processes could not be started: {type(error).__name__}: {error}")
    address, port = plan.master
    inner = error.__cause__ or error
    return FlambeauError(
        f"the machines did not meet at {address}:{port}: {type(inner).__name__}: {str(inner).splitlines()[0]}",
        remedy="the port must be free on machine 0 and open to the others, and --nodes and --master alike on all",
    )
