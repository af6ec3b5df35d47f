"""Following a page as a reader would: its files are written, its commands and programs run, in order, in one folder."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pages import ROOT, Block, Command, blocks, commands, commands_of_habits, missing

LONGEST = 60.0
"""Seconds after which a command is given up."""

SHORT = {"FLAMBEAU__TRAINER__EPOCHS": "1"}
"""What shortens a training run whose page says nothing of its length; the command line counts more."""


@dataclass(frozen=True)
class Done:
    """What came of a command."""

    status: int
    output: str


def follow(page: Path, folder: Path, elsewhere: Sequence[str]) -> list[str]:
    """Do what a page shows, in `folder`; returns what was not as it says.

    Args:
        elsewhere: patterns of commands that are not run here.
    """
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    # What most commands import, once, before they are forked off.
    import flambeau.loading
    import flambeau.tracking.tensorboard
    import flambeau.training.run  # noqa: F401

    faults: list[str] = []
    namespace: dict[str, Any] = {"__name__": "__page__"}
    for block in blocks(page):
        place = f"{page.name}:{block.line}"
        if block.path is not None:
            faults += [f"{place}: {fault}" for fault in _write(block, folder)]
        elif block.language == "python":
            faults += [f"{place}: {fault}" for fault in _execute(block, namespace)]
        elif block.language == "console":
            last = 0
            for command in commands(block):
                if any(re.match(pattern, command.text) for pattern in elsewhere):
                    continue
                last, wrong = _obey(command, last)
                faults += [f"{page.name}:{command.line}: $ {command.text}\n{fault}" for fault in wrong]
        elif block.language == "yaml":
            faults.append(f"{place}: a configuration without the name of its file")
    for command in commands_of_habits(page):
        if not any(re.match(pattern, command.text) for pattern in elsewhere):
            faults += [f"{page.name}:{command.line}: $ {command.text}\n{fault}" for fault in _obey(command, 0)[1]]
    return faults


def _write(block: Block, folder: Path) -> list[str]:
    assert block.path is not None
    file = folder / block.path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(block.text)
    if file.suffix != ".yaml":
        return []
    from flambeau.config import load_config
    from flambeau.errors import ConfigError

    try:
        load_config(block.path)
    except ConfigError as error:
        return [str(error)]
    return []


def _execute(block: Block, namespace: dict[str, Any]) -> list[str]:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(block.text, "<page>", "exec"), namespace)
    except BaseException:
        return [traceback.format_exc()]
    return []


def _obey(command: Command, last: int) -> tuple[int, list[str]]:
    """Run a command; its status, and what is not as shown. `last` is the status of the one before it."""
    if command.text == "echo $?":
        return 0, [] if command.shown == (str(last),) else [f"it is {last}"]
    words = shlex.split(command.text, comments=True)
    variables = {}
    while re.match(r"[A-Z_a-z]+=", words[0]):
        name, variables[name] = words.pop(0).split("=", 1)
    target = Path(words.pop()) if len(words) > 1 and words[-2] == ">" else None
    words = words[:-1] if target else words
    if words[:3] == ["python", "-m", "flambeau"]:
        words = words[2:]
    if words[0] != "flambeau":
        return 0, ["a command that the test does not know"]
    told = any(word.startswith(("trainer.epochs=", "trainer.steps=")) for word in words)
    if words[1] == "train" and not told and command.status == 0:
        variables = {**SHORT, **variables}
    done = _fork(words[1:], variables, command.shown[: command.shown.index("^C")] if "^C" in command.shown else None)
    if target is not None:
        target.write_text(done.output)
    faults = [f"not shown: {line}" for line in missing(command.shown, done.output, exact=command.status == 2)]
    if done.status != command.status:
        faults.append(f"exit status {done.status}, and the page says {command.status}")
    return done.status, [f"{fault}\n{done.output}" for fault in faults]


def _fork(arguments: list[str], variables: Mapping[str, str], until: tuple[str, ...] | None) -> Done:
    """`flambeau ARGUMENTS` in a process of its own.

    Args:
        until: press Ctrl-C once these lines are shown.
    """
    log = Path(".output")
    log.write_bytes(b"")
    child = os.fork()
    if child == 0:
        _become(arguments, variables, log)
    deadline = time.monotonic() + LONGEST
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if until is not None and not missing(until, log.read_text(), exact=False):
            os.kill(child, signal.SIGINT)
            until = None
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    output = log.read_text()
    log.unlink()
    return Done(os.waitstatus_to_exitcode(status), output)


def _become(arguments: list[str], variables: Mapping[str, str], log: Path) -> None:
    """The command, in the process that was forked for it; does not return."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stream = log.open("w")
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        sys.stdout = sys.stderr = stream
        os.environ.update(variables)
        os.environ["PYTHONPATH"] = str(ROOT)  # for the processes that the command starts
        sys.argv = ["flambeau", *arguments]
        from flambeau.cli import main

        status = main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)
