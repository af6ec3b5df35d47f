"""Slurm: the script of a job, its submission, and which process of a step this one is. No torch here."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flambeau.errors import FlambeauError, UsageError
from flambeau.launch.request import Request, matching, train_devices

BODY = Path(__file__).with_name("templates") / "job.sh"
"""What every job does: start the training, save before the limit, requeue, go on."""

LAST_WORDS = 60
"""Seconds that a job must have for training besides those before its limit."""

_TAKEN = {
    **{option: f"--{option}" for option in ("nodes", "gpus-per-node", "mem", "time", "partition", "account", "array")},
    "job-name": "--name",
    "cpus-per-task": "--cpus-per-task",
    "signal": "--signal-seconds",
    "requeue": "--max-requeues",
    "no-requeue": "--max-requeues 0",
    "ntasks-per-node": "--processes-per-node",
    "ntasks": "--processes-per-node",
    "output": "--run-dir",
    "error": "--run-dir",
}
"""Options of sbatch that submit sets itself, and what sets them."""


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """A training as a job of Slurm.

    Attributes:
        request: nodes, devices and time.
        config: the file with the configuration.
        run: the run's folder, the same for every requeue; with `array`, the folder that holds those of the tasks.
        folder: where the job keeps its script and its log.
        directory: the working directory.
        python: the command of Python.
        setup: a file that the job's shell reads before training: modules, an environment.
        signal_seconds: how long before the limit the training is told to save.
        max_requeues: how often the job is requeued until it ends unfinished.
        array: numbers of an array's tasks, as Slurm writes them: `0-4`, `1-8%2`.
        options: more options of sbatch: `--qos=high`.
    """

    request: Request
    config: Path
    run: Path
    folder: Path
    directory: Path
    python: str
    setup: Path | None = None
    partition: str | None = None
    account: str | None = None
    signal_seconds: int = 120
    max_requeues: int = 100
    array: str | None = None
    options: Sequence[str] = ()

    def __post_init__(self) -> None:
        for option, value in (("--partition", self.partition), ("--account", self.account)):
            if value is not None:
                matching(option, value, r"[\w.,+@-]+", "a name")
        if self.array is not None:
            matching("--array", self.array, r"\d+([-:,]\d+)*(%\d+)?", "numbers of tasks: 0-4, 1-8%2")
        for option in self.options:
            matching("--sbatch-arg", option, r"--[a-z][a-z-]*(=[\w.,:/%@+*()|&!~\[\]=-]+)?", "one option: --qos=high")
            name = option[2:].partition("=")[0]
            if name in _TAKEN:
                raise UsageError(f"--sbatch-arg={option}: submit sets this itself", remedy=f"use {_TAKEN[name]}")
        if self.max_requeues < 0:
            raise UsageError(f"--max-requeues is {self.max_requeues}; the least is 0")
        if not 1 <= self.signal_seconds <= 65535:
            raise UsageError(f"--signal-seconds is {self.signal_seconds}; Slurm takes 1 to 65535")
        seconds = self.request.seconds
        if seconds is not None and seconds < self.signal_seconds + LAST_WORDS:
            raise UsageError(
                f"a job of {seconds} s that is told to save {self.signal_seconds} s before its end trains for "
                f"{max(seconds - self.signal_seconds, 0)} s",
                remedy="a longer --time, or a smaller --signal-seconds",
            )
        for path in (self.run, self.folder, self.directory):
            if re.search(r"[\x00-\x1f\x7f\\]", str(path)):
                raise UsageError(
                    f"Slurm cannot write a log below {str(path)!r}: no line ends, control characters or backslashes",
                    remedy="choose another folder with --run-dir",
                )

    @property
    def script(self) -> Path:
        """Where the script lies."""
        return self.folder / "job.sh"

    @property
    def log(self) -> Path:
        """What the job says, all its starts one after the other; `%a` stands for the number of an array's task."""
        return self.folder / ("log.txt" if self.array is None else "log-%a.txt")

    def text(self) -> str:
        """The script."""
        quote = shlex.quote
        run = f"{quote(str(self.run))}/$SLURM_ARRAY_TASK_ID" if self.array else quote(str(self.run))
        training = [self.python, "-m", "flambeau", "train", str(self.config), *train_devices(self.request)]
        lines = [
            "#!/usr/bin/env bash",
            *(f"#SBATCH {option}" for option in self._options()),
            "#",
            "# Made by flambeau submit. `sbatch` with this file goes on in the same folder.",
            "",
            f"cd {quote(str(self.directory))} || exit",
            *([f"source {quote(str(self.setup))}"] if self.setup else []),
            f"script={quote(str(self.script))}",
            f"run={run}",
            f"cpus={self.request.cpus_per_node}",
            f"max_requeues={self.max_requeues}",
            f'training=({shlex.join(training)} --run-dir "$run" --resume)',
        ]
        return "\n".join(lines) + "\n" + BODY.read_text(encoding="utf-8")

    def _options(self) -> list[str]:
        """Options of sbatch, as they stand in the script."""
        request = self.request
        log = re.sub('["$`]', r"\\\g<0>", str(self.folder).replace("%", "%%")) + f"/{self.log.name}"
        options = {
            "job-name": request.name,
            "partition": self.partition,
            "account": self.account,
            "nodes": request.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": request.cpus_per_node,
            "gpus-per-node": request.gpus or None,
            "mem": request.memory,
            "time": request.time,
            "array": self.array,
            "signal": f"B:USR1@{self.signal_seconds}",
            "open-mode": "append",
            "output": f'"{log}"',
        }
        return [
            *(f"--{option}={value}" for option, value in options.items() if value is not None),
            "--requeue" if self.max_requeues else "--no-requeue",
            *self.options,
        ]

    def submit(self) -> str:
        """Hand the script to Slurm, and this process's environment with it; returns the job's number.

        Raises:
            FlambeauError: Slurm refuses the job.
        """
        # Submitted from within another job, that job's own variables would count as options of this one.
        here = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_") or key == "SLURM_CONF"}
        done = subprocess.run(
            ["sbatch", "--parsable", str(self.script)],
            env=here,
            cwd=self.directory,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise FlambeauError(f"Slurm refuses the job: {done.stderr.strip()}")
        return done.stdout.strip().partition(";")[0]


def require_sbatch() -> None:
    """Raise a `UsageError` where no job can be submitted."""
    if shutil.which("sbatch") is None:
        raise UsageError(
            "sbatch, the command that submits jobs to Slurm, is not on this machine",
            remedy="submit where Slurm is (a login node); --dry-run shows the script anywhere",
        )


# --- which process this is -----------------------------------------------------------------------------------------


def join_step(arguments: Sequence[str]) -> None:
    """Take this process for one of the training processes if `srun` started several, as torchrun would have.

    Args:
        arguments: the command line; one that numbers the machines starts the processes of each by itself.
    """
    if not any(argument.startswith("--node-rank") for argument in arguments):
        os.environ.update(environment_of_slurm())


def environment_of_slurm(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What torchrun would have set, for a process that `srun` started as one of several.

    Returns:
        RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT; nothing if a launcher has set them,
        if the step has one task, and in a batch script, which has numbers of tasks in its environment but is none.
    """
    if "RANK" in environ or int(environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return {}
    node, job, step = (int(environ[f"SLURM_{name}"]) for name in ("NODEID", "JOB_ID", "STEP_ID"))
    return {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": environ["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environ["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks_per_node(environ["SLURM_STEP_TASKS_PER_NODE"])[node]),
        "MASTER_ADDR": environ.get("MASTER_ADDR") or _address(first_host(environ["SLURM_STEP_NODELIST"])),
        # Steps of one job, and jobs that share a node, each have a port of their own.
        "MASTER_PORT": environ.get("MASTER_PORT") or str(20000 + (16 * job + step) % 10000),
    }


def tasks_per_node(text: str) -> list[int]:
    """
    >>> tasks_per_node("4(x2),1")
    [4, 4, 1]
    """
    parts = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(",")]
    return [int(part[1]) for part in parts if part for _ in range(int(part[2] or 1))]


def first_host(nodes: str) -> str:
    """
    >>> first_host("rack[2-3,7]n[08-12]-ib,login"), first_host("a,b[1-2]")
    ('rack2n08-ib', 'a')
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0] if first else nodes)


def _address(host: str) -> str:
    """How a node is reached: by its name, or else as Slurm itself reaches it.

    Slurm is asked only where the name is not known: ten thousand processes would ask it at the same moment.
    """
    try:
        socket.getaddrinfo(host, None)
        return host
    except OSError:
        pass
    try:
        said = subprocess.run(["scontrol", "show", "node", host], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return host
    found = re.search(r"NodeAddr=(\S+)", said)
    return found[1] if found else host
