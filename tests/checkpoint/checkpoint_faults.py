"""A program that saves a checkpoint again and again, each time with a fault at another system call.

Run as `python checkpoint_faults.py kill|error|lost|order|power FOLDER`. It imports no torch, so that a process to be
killed costs a fork: the fork waits, strace attaches to it, and it saves. strace counts by thread and by name, and
the thread that writes is new: its N-th `fsync` is the N-th of the save. After each fault the folder is read and
must hold a whole checkpoint, the one before or the one being saved, and the next save must succeed. Prints one
JSON object with what was seen.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint_states import assert_same, save, store_in, weights

from flambeau.errors import CheckpointError

# A save that replaces both the newest and the best checkpoint, and removes those two afterwards.
RULES: dict[str, Any] = {"keep_last": 1, "keep_best": 1}
OLD, NEW, NEXT = 30, 40, 50
EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2


def prepare(folder: Path) -> None:
    """Two older checkpoints: the best, and the newest with its links."""
    store = store_in(folder, **RULES)
    for step, score in [(10, 0.9), (20, 0.3), (OLD, 0.5)]:
        save(store, step, weights(step), score=score)


def fresh(step: int, **rules: int) -> Callable[[Path], None]:
    """A save of a step, with a score above all others."""

    def run(folder: Path) -> None:
        save(store_in(folder, **(rules or RULES)), step, weights(NEW), score=0.95)

    return run


SAVES = {"new": fresh(NEW), "again": fresh(OLD)}
"""The save of a new step, and of the newest step once more with another score."""


@dataclass
class Outcome:
    """How a save under a fault ended: its exit status (negative: signal) and its error message."""

    status: int
    message: str
    trace: str


def under_strace(action: Callable[[], None], options: list[str]) -> Outcome:
    """Run an action in a fork of this process that strace watches from the first moment."""
    shared = mmap.mmap(-1, 1 << 16)  # by memory: a system call to report with could be the one that fails
    child = os.fork()
    if child == 0:
        while not shared[-1]:  # until strace is there; without system calls, which would count
            pass
        status = 0
        try:
            action()
        except CheckpointError as error:
            text = str(error).encode()
            shared[: len(text)] = text
            status = 3
        os._exit(status)
    command = ["strace", "-f", "-qq", "-p", str(child), "-o", "/dev/stdout", *options]
    strace = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while "TracerPid:\t0\n" in Path(f"/proc/{child}/status").read_text():
        if strace.poll() is not None:
            raise RuntimeError(f"strace failed: {command}")
    shared[-1] = 1
    _, status = os.waitpid(child, 0)
    trace, _ = strace.communicate()
    message = shared[:-1].rstrip(b"\0").decode()
    shared.close()
    return Outcome(os.waitstatus_to_exitcode(status), message, trace)


def check(folder: Path, saved: bool | None) -> str:
    """The newest checkpoint is whole, and the old or the new state; the next save succeeds and tidies up.

    `saved` says which of the two it must be, None that either is right.
    """
    newest = store_in(folder).newest()  # fails on a warning: nothing damaged may be seen
    assert newest is not None
    state = newest.load()
    found = "new" if state["seed"] == NEW else "old"
    assert_same(state, weights(NEW if found == "new" else OLD))
    assert saved is None or saved == (found == "new"), f"found the {found} one"
    store = store_in(folder, **RULES)
    save(store, NEXT, weights(NEXT), score=0.99)
    names = sorted(path.name for path in store.folder.iterdir())
    assert names == ["best", "last", f"step-000000{NEXT}"], names
    assert_same(store.at(NEXT).load(), weights(NEXT))
    assert (store.folder / "last" / "manifest.json").exists()
    return found


@dataclass(frozen=True)
class Call:
    """One system call of the saving thread."""

    name: str
    when: int
    """Which of the calls of this name it is, from 1."""
    result: str


def calls_of(trace: str, names: str) -> list[Call]:
    """The calls of the saving thread that have one of the names, in order."""
    main = trace.split(maxsplit=1)[0]
    lines = [line.split(maxsplit=1) for line in trace.splitlines()]
    text = "\n".join(call for thread, call in lines if thread != main)
    text = re.sub(r" <unfinished \.\.\.>\n<\.\.\. \w+ resumed>", "", text)
    count: Counter[str] = Counter()
    calls = []
    for name, result in re.findall(r"^(\w+)\(.*\) += (\S+)", text, flags=re.MULTILINE):
        if name in names.split(","):
            count[name] += 1
            calls.append(Call(name, count[name], result))
    return calls


@contextlib.contextmanager
def copies(folder: Path) -> Iterator[Callable[[], Path]]:
    """Gives a new copy of the prepared folder at each call."""
    template = folder / "template"
    prepare(template)
    work = folder / "work"

    def copy() -> Path:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(template, work, symlinks=True)
        return work

    yield copy


CHANGING = "write,fsync,mkdir,rename,symlink,unlink,unlinkat,rmdir"
"""Calls by which a save changes the file system."""
NO_FILES = "futex|clone3|m(map|unmap|protect|advise)|brk|rt_sig.*|gettid|rseq|set_robust_list|exit|sched_yield"
"""Calls that concern memory and threads alone."""


def dry_run(copy: Callable[[], Path], saving: Callable[[Path], None], names: str | None = None) -> list[Call]:
    """The calls of a save to which nothing happens; all that concern files if no names are given."""
    folder = copy()
    outcome = under_strace(lambda: saving(folder), ["-e", "trace=all"])
    assert outcome.status == 0, outcome
    assert check(folder, saved=True) == "new"
    if names is None:
        every = set(re.findall(r"^\d+ +(\w+)\(", outcome.trace, flags=re.MULTILINE))
        names = ",".join(name for name in every if not re.fullmatch(NO_FILES, name))
    return calls_of(outcome.trace, names)


def inject(call: Call, fault: str) -> list[str]:
    """The options of strace that give a fault to one call."""
    return ["-e", f"trace={call.name}", "-e", f"inject={call.name}:{fault}:when={call.when}"]


def kill(folder: Path) -> dict[str, Any]:
    """SIGKILL at every system call of a save that concerns files."""
    seen: dict[str, Any] = {}
    with copies(folder) as copy:
        for title, saving in SAVES.items():
            found: Counter[str] = Counter()
            calls = dry_run(copy, saving)
            for call in calls:
                work = copy()
                outcome = under_strace(lambda work=work, saving=saving: saving(work), inject(call, "signal=SIGKILL"))
                assert outcome.status == -signal.SIGKILL, (call, outcome.status)
                found[check(work, saved=None)] += 1
            seen[title] = {"calls": dict(Counter(call.name for call in calls)), "found": dict(found)}
    return seen


def error(folder: Path) -> dict[str, Any]:
    """EIO from every call of a save that changes something: the save fails, says so, and harms nothing."""
    seen: dict[str, Any] = {}
    with copies(folder) as copy:
        for title, saving in SAVES.items():
            calls = dry_run(copy, saving, CHANGING)
            assert calls[0].name == "mkdir"
            for call in calls[1:]:  # the first makes the folder, which is there: an error of it is none
                work = copy()
                outcome = under_strace(lambda work=work, saving=saving: saving(work), inject(call, "error=EIO"))
                assert outcome.status == 3, (title, call, outcome)
                assert "the disk reports an input/output error (EIO" in outcome.message, outcome.message
                assert "the newest whole checkpoint is" in outcome.message, outcome.message
                check(work, saved=None if "is in place, but" in outcome.message else False)
            seen[title] = dict(Counter(call.name for call in calls[1:]))
    return seen


def lost(folder: Path) -> dict[str, Any]:
    """A write that reports success and does nothing, each in turn: noticed before anything is replaced."""
    messages = []
    with copies(folder) as copy:
        for call in dry_run(copy, SAVES["new"], "write"):
            work = copy()
            outcome = under_strace(lambda work=work: SAVES["new"](work), inject(call, f"retval={call.result}"))
            assert outcome.status == 3, (call, outcome)
            check(work, saved=False)
            messages.append(outcome.message)
    return {"messages": messages}


def order(folder: Path) -> dict[str, Any]:
    """What a save flushes, renames and removes, in order, as pairs of call and path below `checkpoints/`."""
    seen: dict[str, Any] = {}
    with copies(folder) as copy:
        for title, saving in SAVES.items():
            work = copy()
            options = ["-y", "-e", "trace=fsync,rename,unlinkat,rmdir"]
            trace = under_strace(lambda work=work, saving=saving: saving(work), options).trace
            # `fsync(3</path>)`, `rename("/path", "/path")`, `unlinkat(3</path>, "name", 0)`, `rmdir("/path")`
            found = re.findall(r"(\w+)\((?:\w+<([^>]*)>|\"([^\"]*)\")(?:, \"([^\"]*)\")?", trace)
            root = str(work / "checkpoints")
            seen[title] = [
                (name, *(path.removeprefix(root).strip("/") for path in (descriptor or first, second)))
                for name, descriptor, first, second in found
            ]
    return seen


def power(folder: Path) -> dict[str, Any]:
    """A power cut on ext4 at every call of a save that changes something, and right after the save."""
    found: Counter[str] = Counter()
    image, disk = folder / "image", folder / "disk"
    disk.mkdir()

    def run(*command: str | Path) -> None:
        subprocess.run(command, check=True, capture_output=True)

    with image.open("wb") as file:
        file.truncate(16 << 20)
    run("mkfs.ext4", "-q", image)
    run("mount", "-o", "loop", image, disk)
    prepare(disk)
    run("umount", disk)

    def cut(call: Call | None, saving: Callable[[Path], None]) -> Outcome:
        """Save on a copy of the prepared disk, stop at a call, and lose all that was not flushed."""
        run("cp", "--sparse=always", image, folder / "copy")
        run("mount", "-o", "loop", folder / "copy", disk)
        try:
            options = ["-e", "trace=all"] if call is None else inject(call, "signal=SIGKILL")
            outcome = under_strace(lambda: saving(disk), options)
            directory = os.open(disk, os.O_RDONLY)
            fcntl.ioctl(directory, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
            os.close(directory)
        finally:
            run("umount", disk)
        run("mount", "-o", "loop", folder / "copy", disk)
        try:
            found[check(disk, saved=True if call is None else None)] += 1
        finally:
            run("umount", disk)
        return outcome

    cut(None, fresh(NEW, keep_last=9))  # with nothing to remove, and so no flush after its own
    points = 0
    for saving in SAVES.values():
        calls = calls_of(cut(None, saving).trace, CHANGING)
        points += len(calls)
        for call in calls:
            outcome = cut(call, saving)
            assert outcome.status == -signal.SIGKILL, (call, outcome)
    return {"points": points, "found": dict(found)}


FAULTS = {"kill": kill, "error": error, "lost": lost, "order": order, "power": power}

if __name__ == "__main__":
    print(json.dumps(FAULTS[sys.argv[1]](Path(sys.argv[2]))))
