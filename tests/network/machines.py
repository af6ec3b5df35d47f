"""Two machines in one: each has processes, a name, mounts and a network of its own, and a cable lies between them.

A machine is a set of Linux namespaces. Each is kept by a process that reads a pipe from here: when the test ends, or
is killed, the pipe closes, that process ends, and the kernel ends every other of the machine and takes away its
network. Nothing has a name outside, so that tests that run at once cannot meet, and nothing can be left behind.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from support.projects import ROOT

PROGRAMS = ("ip", "unshare", "nsenter", "mount")
"""What Debian's iproute2, util-linux and mount bring."""

NAMES = ("h1", "h2")
ADDRESSES = {name: f"10.77.0.{number}" for number, name in enumerate(NAMES, start=1)}
INTERFACE = "eth0"

BOOT = """
hostname "$1"
mount -t tmpfs tmpfs /dev/shm
mount --bind "$2/hosts" /etc/hosts
mount --bind "$2/nsswitch.conf" /etc/nsswitch.conf
echo up
exec cat
"""


def why_not() -> str | None:
    """What is missing here for machines, if anything is."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "namespaces need root on Linux"
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"{', '.join(absent)} not found: install iproute2 and util-linux"
    allowed = subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], capture_output=True).returncode == 0
    return None if allowed else "this root may not make namespaces"


class Machine:
    """A machine, switched on.

    Args:
        name: what its processes take for the machine's name.
        folder: for its files; the rest of the file system is the same for all machines, as on a cluster.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        folder.mkdir()
        hosts = {"localhost": "127.0.0.1"} | ADDRESSES
        (folder / "hosts").write_text("".join(f"{address} {host}\n" for host, address in hosts.items()))
        (folder / "nsswitch.conf").write_text("hosts: files\n")  # a name server would be waited for in vain
        self._network = _keep(["unshare", "--net", "sh", "-c", "echo up; exec cat"])
        self._in_network(["ip", "link", "set", "lo", "up"])
        self.processes: list[Process] = []
        self.switch_on()

    @property
    def network(self) -> int:
        """A process whose network is the machine's."""
        return self._network.pid

    def switch_on(self) -> None:
        """Start the machine; nothing runs on it yet."""
        unshare = ["unshare", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        boot = ["sh", "-e", "-c", BOOT, "boot", self.name, str(self.folder)]
        self._kept = _keep([*self._enter_network(), *unshare, *boot])
        (self._init,) = children(self._kept.pid)

    def switch_off(self) -> None:
        """End every process at once. The others are told (by the kernel, which closes connections) if plugged in."""
        self._kept.kill()
        self._kept.wait()
        for process in self.processes:
            process.wait()
        _end(self._kept)

    def remove(self) -> None:
        """Switch off for good."""
        self.switch_off()
        self._network.kill()
        _end(self._network)

    def unplug(self) -> None:
        """Cut the cable: what is sent is lost, and nobody is told."""
        self._in_network(["ip", "link", "set", INTERFACE, "down"])

    def plug(self) -> None:
        """Mend the cable."""
        self._in_network(["ip", "link", "set", INTERFACE, "up"])

    def start(self, *words: str | Path, folder: Path, env: Mapping[str, str] | None = None) -> Process:
        """Run a command on the machine, in the background and in a session of its own.

        Args:
            folder: its working directory.
            env: variables beside those of the test.
        """
        output = self.folder / f"output-{len(self.processes)}.txt"
        enter = ["nsenter", f"--target={self._init}", "--net", "--uts", "--ipc", "--mount", "--pid", "--wd=."]
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})}
        with output.open("w") as file:
            entered = subprocess.Popen(
                [*enter, "setsid", *map(str, words)],
                cwd=folder,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        process = Process(entered, output, f"{self.name}: {shlex.join(map(str, words))}")
        self.processes.append(process)
        return process

    def _enter_network(self) -> list[str]:
        return ["nsenter", f"--target={self.network}", "--net"]

    def _in_network(self, words: Sequence[str]) -> None:
        run([*self._enter_network(), *words])


class Process:
    """A command that runs on a machine, seen from outside."""

    def __init__(self, entered: subprocess.Popen[bytes], output: Path, title: str) -> None:
        self._entered, self._output, self.title = entered, output, title

    @property
    def output(self) -> str:
        """What it has said so far."""
        return self._output.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """Its number outside of the machine."""
        until(lambda: bool(children(self._entered.pid)), f"{self.title} to begin", watched=(self,))
        return children(self._entered.pid)[0]

    def workers(self) -> list[int]:
        """Numbers of the processes that train, in the order of their start: those that have a rank."""
        return [pid for pid in descendants(self.pid) if b"LOCAL_RANK" in variables_of(pid)]

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the command's own process alone."""
        os.kill(self.pid, number)

    def running(self) -> bool:
        """Whether it has not ended."""
        return self._entered.poll() is None

    def wait(self, seconds: float = 60) -> int:
        """Its exit status (minus the signal's number), once it has ended."""
        try:
            return self._entered.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.title} does not end\n{self.output}") from None

    def expect(self, status: int, seconds: float = 60) -> None:
        """Wait for the end, with this status."""
        found = self.wait(seconds)
        assert found == status, f"{self.title}: status {found}\n{self.output}"


def join(one: Machine, other: Machine) -> None:
    """Lay a cable between two machines."""
    end = ["name", INTERFACE, "netns"]
    run(["ip", "link", "add", *end, str(one.network), "type", "veth", "peer", *end, str(other.network)])
    for machine in (one, other):
        machine._in_network(["ip", "addr", "add", f"{ADDRESSES[machine.name]}/24", "dev", INTERFACE])
        machine.plug()


def until(holds: Callable[[], bool], what: str, *, watched: Sequence[Process] = (), seconds: float = 60) -> None:
    """Wait for something that processes do; fail with all that they said if it does not come, or one of them ends."""
    deadline = time.monotonic() + seconds
    while not holds():
        ended = [process for process in watched if not process.running()]
        if (ended and not holds()) or time.monotonic() > deadline:
            said = "\n\n".join(f"{process.title}\n{process.output}" for process in watched)
            raise AssertionError(f"waited in vain for {what}\n{said}")
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Numbers of the processes that a process has started, with any of its threads, and that have not ended."""
    found = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += [int(child) for child in thread.read_text().split()]
    return found


def descendants(pid: int) -> list[int]:
    """The processes below one."""
    return [found for child in children(pid) for found in (child, *descendants(child))]


def variables_of(pid: int) -> dict[bytes, bytes]:
    """The environment that a process was started with; empty if it is gone."""
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return dict(entry.split(b"=", 1) for entry in content.split(b"\0") if b"=" in entry)


def run(words: Sequence[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"


def _keep(words: Sequence[str]) -> subprocess.Popen[str]:
    """Start a process that says "up" and stays until its input closes."""
    kept = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert kept.stdout is not None and kept.stderr is not None
    if kept.stdout.readline() != "up\n":
        kept.kill()
        raise AssertionError(f"{shlex.join(words)}: {kept.stderr.read()}")
    return kept


def _end(kept: subprocess.Popen[str]) -> None:
    kept.wait()
    for stream in (kept.stdin, kept.stdout, kept.stderr):
        assert stream is not None
        stream.close()
