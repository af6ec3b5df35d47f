"""A real Slurm on this machine: a controller and two nodes, in a folder and on ports of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flambeau.run_folder.status import is_alive

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")

CONFIGURATION = """\
ClusterName=flambeau
SlurmctldHost=localhost
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
SlurmdTimeout=15
ReturnToService=2
MailProg=/bin/true
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={first} CPUs=4 RealMemory=8000 Gres=gpu:2
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={second} CPUs=4 RealMemory=8000 Gres=gpu:2
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF
"""

PATIENCE = 180.0
"""Seconds after which a job is given up; the machine may be busy with other things."""

DEVICES = "NodeName=n1 Name=gpu File=/dev/tty[10-11]\nNodeName=n2 Name=gpu File=/dev/tty[12-13]\n"
"""Any character device passes for an accelerator."""


@dataclass
class Cluster:
    """Its commands, run with its configuration."""

    folder: Path
    pids: dict[str, int] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """An environment in which `sbatch` and the others mean this cluster."""
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def call(self, *command: str, check: bool = True) -> str:
        """What a command of Slurm says."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number: int | str) -> dict[str, str]:
        """The fields of a job, as `scontrol show job` has them."""
        line = self.call("scontrol", "show", "job", str(number), "-o")
        return dict(pair.split("=", 1) for pair in line.split() if "=" in pair)

    def wait(self, number: int | str, *states: str, log: Path | None = None) -> dict[str, str]:
        """Wait until a job is in one of `states`, sending it off soon whenever it was requeued.

        Slurm lets a requeued job begin two minutes later. Not within a second: nodes refuse a job whose permission of
        before was revoked in that second ("Job credential revoked").

        Args:
            log: a file that is shown if the job comes to another end.
        """
        deadline, sent_off = time.monotonic() + PATIENCE, set[str]()
        while True:
            job = self.job(number)
            state = job["JobState"]
            if state in states:
                return job
            if state == "PENDING" and job.get("Reason") == "BeginTime" and job["Restarts"] not in sent_off:
                self.call("scontrol", "update", f"JobId={number}", "StartTime=now+2", check=False)
                sent_off.add(job["Restarts"])
            ended = state not in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING")
            if ended or time.monotonic() > deadline:
                said = log.read_text() if log is not None and log.exists() else ""
                raise AssertionError(f"{number} is {state} ({job.get('Reason')})\n{said}")
            time.sleep(0.2)

    def cancel_all(self) -> None:
        """End all jobs, and wait until nothing of them is left."""
        self.call("scancel", "--user=root", check=False)
        _until(lambda: not self.call("squeue", "-h").strip())

    def start_node(self, name: str) -> None:
        """Start the daemon of a node, and wait until the controller has heard of it."""
        self.call("slurmd", "-N", name)
        self.pids[name] = _pid(self.folder / f"slurmd.{name}.pid")
        _until(lambda: self.call("sinfo", "-h", "-n", name, "-o", "%t").split()[:1] in (["idle"], ["mix"], ["alloc"]))

    def kill_node(self, name: str) -> None:
        """The node loses power: its daemon and everything that runs for jobs there is gone."""
        os.kill(self.pids.pop(name), signal.SIGKILL)
        (self.folder / f"slurmd.{name}.pid").unlink()
        for pid in _processes(self.folder, name.encode()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Bring a cluster up, and take it down with all that it started."""
    # Not pytest's folder: the path of a socket has little room.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    slurm = Cluster(folder)
    try:
        _start(slurm)
        yield slurm
    finally:
        _stop(slurm)
        shutil.rmtree(folder, ignore_errors=True)


def _start(slurm: Cluster) -> None:
    folder = slurm.folder
    for name in ("state", "spool.n1", "spool.n2", "log", "munge"):
        (folder / name).mkdir()
    folder.chmod(0o711)
    controller, first, second = _free_ports(3)
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(folder=folder, controller=controller, first=first, second=second)
    )
    (folder / "gres.conf").write_text(DEVICES)
    munge = folder / "munge"
    munge.chmod(0o711)
    key = munge / "key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    slurm.call(
        *("munged", f"--socket={munge}/socket", f"--key-file={key}", f"--log-file={munge}/log"),
        *(f"--pid-file={munge}/pid", f"--seed-file={munge}/seed"),
    )
    slurm.pids["munged"] = _pid(munge / "pid")
    slurm.call("slurmctld", "-c")
    slurm.pids["slurmctld"] = _pid(folder / "slurmctld.pid")
    for name in ("n1", "n2"):
        slurm.start_node(name)


def _stop(slurm: Cluster) -> None:
    """Jobs first, so that their processes go with the daemons that know them."""
    if "slurmctld" in slurm.pids:
        with contextlib.suppress(AssertionError):
            slurm.cancel_all()
    for pid in slurm.pids.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    for pid in _processes(slurm.folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    # They write into the folder to their end.
    _until(lambda: not any(is_alive(pid) for pid in slurm.pids.values()))


def _processes(folder: Path, node: bytes | None = None) -> list[int]:
    """What runs for jobs of the cluster, or of one of its nodes: each step's daemon comes before what it has started.

    They are known by the cluster's configuration in their environment, and tasks by the node's name there. Commands
    of a test have the one without the other.
    """
    daemons, tasks = [], []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            pairs = (entry / "environ").read_bytes().split(b"\0")
            variables = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
            name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue  # it has ended, or is not ours to read
        if variables.get(b"SLURM_CONF") != os.fsencode(folder / "slurm.conf"):
            continue
        if name == "slurmstepd":
            daemons.append(int(entry.name))
        elif node in (None, own := variables.get(b"SLURMD_NODENAME")) and own is not None:
            tasks.append((int(entry.name), int(rest.split()[1])))
    if node is not None:
        daemons = [daemon for daemon in daemons if any(parent == daemon for _, parent in tasks)]
    return [*daemons, *(pid for pid, _ in tasks)]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _pid(path: Path) -> int:
    _until(lambda: path.exists() and path.read_text().strip())
    return int(path.read_text())


def _until(condition: Callable[[], object], *, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "Slurm takes too long"
        time.sleep(0.05)
