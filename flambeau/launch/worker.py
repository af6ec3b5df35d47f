"""One of several processes of a run, from its first line to its exit status.

A process that fails says so where the others and the launcher look for it, and ends at once: taking the process group
down would be to wait for processes that are gone.
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from flambeau.errors import EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED, FlambeauError
from flambeau.launch import environment, ranks
from flambeau.launch.lead import LedError
from flambeau.launch.outcome import Kind, Outcome, Outcomes

if TYPE_CHECKING:
    from flambeau.runtime.world import World

EXIT_INTERRUPTED = 130
"""What shells give for a process that Ctrl-C ended."""

ECHO_WAIT = 1.1
"""Seconds that a process which only sees another's end waits before it ends too. torchrun compares failures by whole
seconds, and what failed first is what its message is to be of."""

_ECHOES = ("closed by peer", "reset by peer", "broken pipe", "gloo", "nccl", "socket")
"""Words of the errors that a process gets because another one is gone."""

_PR_SET_PDEATHSIG = 1


def run_worker(work: Callable[[], int]) -> int:
    """Do the work of one of several processes; returns its exit status. Does not return from an error."""
    end_with_parent()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, _outside_training)
    ranks.redirect_rank(environment.rank())
    faulthandler.enable()
    try:
        status = work()
    except BaseException as error:
        fail(error)
    outcomes = Outcomes.from_environment()
    if outcomes is not None and environment.rank() not in outcomes.read():  # a preempted one has said so
        kinds: dict[int, Kind] = {EXIT_DONE: "done", EXIT_PREEMPTED: "preempted"}
        outcomes.report(Outcome(rank=environment.rank(), kind=kinds.get(status, "error"), status=status))
    if isinstance(place := ranks.output(), ranks.RankOutput):
        place.drop()
    return status


def leave(status: int) -> NoReturn:
    """End this process after its work, with all that is to be done at the end but for taking the interpreter down.

    There torch's threads are destroyed while they may still run: seen once in some hundred ends, after everything was
    saved, as "terminate called without an active exception" and a status of its own (torch 2.13).
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _outside_training(number: int, frame: FrameType | None) -> None:
    """Before the training a signal ends the process. After it the process is leaving, and a signal is not to end it:
    schedulers and launchers both send it, and a process may have heard from another what is to be done."""
    signals = sys.modules.get("flambeau.runtime.signals")
    if signals is None or not signals.StopSignals.used:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def end_with_parent() -> None:
    """End this process when the one that started it is gone, however that one ended: no worker outlives its agent."""
    if environment.AGENT not in os.environ:
        return
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_watch_parent, args=(parent,), name="flambeau-parent", daemon=True).start()
    expected = os.environ.get(environment.LAUNCHER)
    if expected is not None and parent != int(expected):  # it ended before it could be watched
        os._exit(EXIT_FAILED)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(EXIT_FAILED)


def goes_on(world: World) -> bool:
    """Whether an agent has stopped the processes to start them again, with more or fewer machines; all ask together."""
    outcomes = Outcomes.from_environment()
    return any(world.gather(outcomes is not None and outcomes.restarting))


def preempted_status(*, going_on: bool) -> int:
    """The exit status of a process that was preempted and has saved.

    To torchrun's agent only 0 means that nothing is to be started again. So under Flambeau's launcher, which knows of
    the preemption from the outcome, a process leaves with 0; under another launcher with 75.
    """
    outcomes = Outcomes.from_environment()
    if outcomes is None or going_on:
        return EXIT_PREEMPTED
    outcomes.report(Outcome(rank=environment.rank(), kind="preempted", status=EXIT_PREEMPTED))
    return EXIT_DONE


def end_from_thread(summary: str, text: str) -> bool:
    """Say why this process is about to be ended from a thread: because others are gone, or because it hangs.

    Returns:
        Whether the launcher shows the text, so that it need not be printed.
    """
    outcomes = Outcomes.from_environment()
    if outcomes is not None and environment.rank() not in outcomes.read():
        outcomes.report(_outcome("told", EXIT_FAILED, summary, text))
    if not isinstance(place := ranks.output(), ranks.MainOutput):
        return False  # what is printed goes to this rank's file
    place.keep(text.rstrip())
    return outcomes is not None


def describe(error: BaseException) -> str:
    """A line that says which process failed of what: `rank 1: ValueError: the message`."""
    if _kind(error) == "told":
        return str(error).split("\n")[0]
    first = str(error).split("\n")[0]
    return f"rank {environment.rank()}: {type(error).__name__}: {first}".removesuffix(": ")


def fail(error: BaseException) -> NoReturn:
    """End this process, of several, because of `error`: at once, and so that the reason is seen."""
    try:
        _tell(error)
        for child in multiprocessing.active_children():
            child.kill()
        sys.stdout.flush()
    except BaseException:  # a full disk, a terminal that is gone: nothing may keep the process from ending
        traceback.print_exc()
    finally:
        os._exit(_status(error))


def _tell(error: BaseException) -> None:
    status, kind = _status(error), _kind(error)
    summary = f"{type(error).__name__}: {error}"
    if isinstance(error, FlambeauError):
        summary, text = error.message, f"error: {error}\n"
    elif isinstance(error, KeyboardInterrupt):
        text = "interrupted\n"
    else:
        text = "".join(traceback.format_exception(error))
    outcomes = Outcomes.from_environment()
    if outcomes is not None:
        outcomes.report(_outcome(kind, status, summary.split("\n")[0], text))
    if kind == "error":
        _write_error_file(error)
    place = ranks.output()
    if outcomes is not None:  # the launcher shows what is to be seen on the terminal
        if isinstance(place, ranks.MainOutput):
            place.keep(text)
        else:
            print(text, end="", file=sys.stderr, flush=True)
        return
    shown = text if isinstance(error, FlambeauError) else f"rank {environment.rank()} failed:\n{text}"
    if isinstance(place, ranks.RankOutput):
        print(text, end="", file=sys.stderr, flush=True)
        if kind == "error" and _is_first_to_say(text):
            place.say(shown)
        place.drop()
    elif kind == "echo" and isinstance(place, ranks.MainOutput):
        place.keep(text)
        print(f"rank 0 lost the connection to another process: {summary}", file=sys.stderr, flush=True)
    elif kind != "error" or _is_first_to_say(text):
        print(shown, end="", file=sys.stderr, flush=True)
    if kind != "error" and environment.AGENT in os.environ:
        time.sleep(ECHO_WAIT)


def _outcome(kind: Kind, status: int, summary: str, text: str) -> Outcome:
    place = ranks.output()
    path = place.path if place is not None else None
    return Outcome(
        rank=environment.rank(),
        kind=kind,
        status=status,
        summary=summary,
        text=text,
        output=str(path) if path is not None else None,
    )


def _status(error: BaseException) -> int:
    if isinstance(error, FlambeauError):
        return error.exit_status
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) and error.code else EXIT_FAILED  # in the middle: no good end
    return EXIT_FAILED


def _kind(error: BaseException) -> Kind:
    """Whether an error is this process's own, or what it sees of another's."""
    if isinstance(error, LedError):
        return "told"
    watchdog, distributed = sys.modules.get("flambeau.runtime.watchdog"), sys.modules.get("torch.distributed")
    if watchdog is not None and isinstance(error, watchdog.OtherRankError):
        return "told"
    if distributed is not None and isinstance(error, distributed.DistError):
        return "echo"
    words = str(error).lower()
    return "echo" if isinstance(error, RuntimeError) and any(echo in words for echo in _ECHOES) else "error"


def _write_error_file(error: BaseException) -> None:
    """Tell torchrun's agent, which shows the traceback of the worker that failed first."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    details = {"py_callstack": "".join(traceback.format_exception(error)), "timestamp": str(int(time.time()))}
    message = {"message": f"{type(error).__name__}: {error}", "extraInfo": details}
    Path(path).write_text(json.dumps({"message": message}))


def _is_first_to_say(text: str) -> bool:
    """Whether no other process of this machine has said this on the terminal: one mistake often ends all alike."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return True
    said = Path(path).parents[1] / f"said-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    try:
        said.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
