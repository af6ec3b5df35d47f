"""`status.json`: what a run is doing, its best score, a sign of life, and how to go on."""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypedDict, cast, get_args

from flambeau.run_folder.atomic import write_atomically

State = Literal["running", "finished", "failed", "preempted", "dead"]
"""`dead` is never written: it is what a run reads as that says `running` while its process is gone."""

WRITE_INTERVAL = 1.0
"""Seconds between two writes of mere progress; a change of state is written at once."""
BEAT_INTERVAL = 15.0
"""Seconds between two signs of life."""
BEAT_LIMIT = 180.0
"""Seconds without a sign of life after which a run is taken for dead: some beats may be late or lost."""


class Best(TypedDict):
    """The best validation score so far."""

    metric: str
    value: float
    step: int


@dataclass(frozen=True, kw_only=True)
class Status:
    """The content of `status.json`. Times are UTC in ISO 8601."""

    state: State = "running"
    config: str = ""
    """Name of the configuration."""
    step: int = 0
    """Optimizer steps done."""
    epoch: int = 0
    """Whole epochs done."""
    total_steps: int | None = None
    """The step at which the run ends."""
    planned_steps: int | None = None
    """The steps that its schedules are laid over, where it ends before them."""
    best: Best | None = None
    started: str | None = None
    ended: str | None = None
    heartbeat: str | None = None
    """The last sign of life of the process."""
    host: str = ""
    pid: int = 0
    job: str | None = None
    """The number of the scheduler's job that trains it: Slurm's, `17` or, for a task of an array, `17_3`."""
    debug: str | None = None
    """The word of `trainer.debug` that shortens the run: not a result to keep."""
    error: str | None = None
    """What ended a failed run, in one line."""
    next: str | None = None
    """The command that goes on from here."""
    agents: list[str] = field(default_factory=list)
    """The processes (torchrun's agents) that started those of the run: who is started anew by one of them goes on."""


_STATES = frozenset(get_args(State))
_FIELDS = frozenset(field.name for field in fields(Status))


def now() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def this_host() -> str:
    """The name of this machine."""
    return os.uname().nodename


def this_job() -> str | None:
    """The scheduler's job that this process belongs to."""
    task = [os.environ.get(f"SLURM_ARRAY_{name}_ID", "") for name in ("JOB", "TASK")]
    return "_".join(task) if all(task) else os.environ.get("SLURM_JOB_ID")


def read_status(path: Path) -> Status:
    """The status in file `path`.

    Keys that this version does not know are left out. A file that cannot be read as a status (a power cut may
    leave it empty) stands for a run that is dead.

    Raises:
        FileNotFoundError: there is no such file.
    """
    try:
        values = json.loads(path.read_bytes())
        status = Status(**{key: value for key, value in values.items() if key in _FIELDS})
        _verify(status)
        return status
    except (ValueError, AttributeError, TypeError, KeyError):
        return Status(state="dead", error=f"{path.name} is damaged")


def _verify(status: Status) -> None:
    """Raise any of the errors of a wrong type if a reader could stumble over the status."""
    if status.state not in _STATES or not isinstance(status.config, str):
        raise ValueError(status.state)
    if not all(isinstance(number, int) for number in (status.step, status.epoch, status.pid)):
        raise TypeError(status.step)
    for moment in (status.started, status.heartbeat):
        if moment is not None:
            datetime.fromisoformat(moment).timestamp()
    if not all(isinstance(agent, str) for agent in status.agents):
        raise TypeError(status.agents)
    if status.best is not None:
        str.strip(status.best["metric"])
        float(status.best["value"])


def state_now(status: Status) -> State:
    """The state of a run as of now: `dead` if it says `running` and nothing lives behind it.

    On this machine the process is asked for; on another the heartbeat decides, so clocks may differ by a
    minute or two.
    """
    if status.state != "running":
        return status.state
    if status.host == this_host() and not is_alive(status.pid):
        return "dead"
    if status.heartbeat is None:
        return "dead"
    age = time.time() - datetime.fromisoformat(status.heartbeat).timestamp()
    return "dead" if age > BEAT_LIMIT else "running"


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        # A killed process whose parent has not asked for it yet still has its number; "Z" marks it.
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (OSError, IndexError):
        return True


class StatusFile:
    """Keeps `status.json` of the run that this process owns, from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_owner: Callable[[], bool] | None = None
        """Asked before each write: a process whose run was taken over by another must not write over its status."""
        self._mutex = threading.Lock()
        self._status: Status | None = None
        self._written_at = -math.inf
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def read(self) -> Status:
        """The status: what this process last said, or else the file."""
        return self._status or read_status(self.path)

    def create(self, status: Status) -> None:
        """Write the first status.

        Raises:
            FileExistsError: there is a status already: another run took the folder.
        """
        with self.path.open("xb"), self._mutex:
            self._status = _complete(status, {"state": "running"})
            self._write()

    def update(self, changes: dict[str, Any]) -> None:
        """Change fields by name. A change of `state` is on the disk when this returns.

        Progress goes to the file at most once a second, or with the next heartbeat; a disk that refuses it
        does not end the training (its next checkpoint will say what is wrong).
        """
        unknown = changes.keys() - _FIELDS
        if unknown:
            raise TypeError(f"a status has no field {', '.join(sorted(unknown))}")
        with self._mutex:
            status = self._status or read_status(self.path)
            self._status = _complete(replace(status, **changes), changes)
            if "state" in changes:
                self._write()
            elif time.monotonic() - self._written_at >= WRITE_INTERVAL:
                self._try_write()

    def fail(self, error: BaseException) -> None:
        """Mark the run as failed if this process had it running."""
        if self._status is not None and self._status.state == "running":
            # On a disk that refuses this too, the error itself is what is to be seen; the run reads as dead.
            with contextlib.suppress(OSError):
                self.update({"state": "failed", "error": f"{type(error).__name__}: {error}"})

    def start_heartbeat(self) -> None:
        """Give a sign of life every few seconds from a thread, for as long as the run is running."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat, name="flambeau-heartbeat", daemon=True)
        self._thread.start()

    def stop_heartbeat(self) -> None:
        """End the signs of life, and write what is still only in memory."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._mutex:
            if self._status is not None:
                self._try_write()

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_INTERVAL):
            with self._mutex:
                if self._status is not None and self._status.state == "running":
                    self._try_write()

    def _try_write(self) -> None:
        try:
            self._write(durable=False)
        except OSError:
            self._written_at = time.monotonic()  # as good as written: it is tried again an interval later

    def _write(self, *, durable: bool = True) -> None:
        assert self._status is not None
        if self.is_owner is not None and not self.is_owner():
            return
        self._status = replace(self._status, heartbeat=now())
        values = asdict(self._status)
        if self._status.best is not None and not math.isfinite(self._status.best["value"]):
            values["best"] = None  # JSON has no such number, and nothing is best that is not finite
        write_atomically(self.path, json.dumps(values, indent=2) + "\n", durable=durable)
        self._written_at = time.monotonic()


def _complete(status: Status, changes: dict[str, Any]) -> Status:
    """Fill in what follows from a change of state."""
    state = changes.get("state")
    if state == "running":
        began = {"pid": os.getpid(), "host": this_host(), "job": this_job(), "started": status.started or now()}
        status = replace(status, **cast(Any, began), ended=None, error=changes.get("error"))
    elif state is not None:
        status = replace(status, ended=now())
    if status.error is not None and "\n" in status.error:
        status = replace(status, error=" ".join(status.error.split()))
    return status
