"""What a job asks of a cluster, the same for every scheduler. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flambeau.errors import UsageError

_TIME = re.compile(r"(?:(?P<days>\d+)-(?P<rest>\d+(?::\d+){0,2})|(?P<short>\d+(?::\d+){0,2}))", re.ASCII)
_MEMORY = re.compile(r"(\d+)([KMGT]?)", re.ASCII)
_MEBIBYTES = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}


@dataclass(frozen=True, kw_only=True)
class Request:
    """Nodes that are all alike, and for how long.

    Attributes:
        name: of the job: letters, digits and `._+-`.
        nodes: machines.
        gpus: accelerators of each node, one process for each; 0 trains on CPUs.
        processes: processes of each node if there are no accelerators.
        cpus: CPUs of each process, its data workers included.
        memory: memory of each node as Slurm writes it: `64G`; without a unit, mebibytes.
        time: the limit as Slurm writes it: minutes, `hours:minutes:seconds`, `days-hours` and so on.
    """

    name: str
    nodes: int = 1
    gpus: int = 0
    processes: int = 1
    cpus: int = 1
    memory: str | None = None
    time: str | None = None

    def __post_init__(self) -> None:
        for option, value, least in (
            ("--nodes", self.nodes, 1),
            ("--gpus-per-node", self.gpus, 0),
            ("--processes-per-node", self.processes, 1),
            ("--cpus-per-task", self.cpus, 1),
        ):
            if value < least:
                raise UsageError(f"{option} is {value}; the least is {least}")
        if self.gpus and self.processes not in (1, self.gpus):
            raise UsageError(
                f"{self.processes} processes for {self.gpus} GPUs: each GPU has a process of its own",
                remedy="leave out --processes-per-node",
            )
        matching("--name", self.name, r"[A-Za-z0-9][\w.+-]{0,62}", "letters, digits and ._+-")
        _ = self.seconds, self.mebibytes

    @property
    def ranks_per_node(self) -> int:
        """Training processes of each node."""
        return self.gpus or self.processes

    @property
    def cpus_per_node(self) -> int:
        """CPUs of all processes of a node."""
        return self.cpus * self.ranks_per_node

    @property
    def seconds(self) -> int | None:
        """The time limit; None without one."""
        if self.time is None:
            return None
        found = _TIME.fullmatch(self.time)
        if found is None:
            raise UsageError(
                f"--time {self.time!r} is no time", remedy="write it as Slurm does: 90 (minutes), 4:00:00, 2-12"
            )
        numbers = [int(number) for number in (found["rest"] or found["short"]).split(":")]
        if found["days"] is not None or len(numbers) == 3:
            hours, minutes, seconds = [*numbers, 0, 0][:3]
        else:
            hours, (minutes, seconds) = 0, [*numbers, 0][:2]
        return ((24 * int(found["days"] or 0) + hours) * 60 + minutes) * 60 + seconds

    @property
    def mebibytes(self) -> int | None:
        """Memory of a node; None if nothing is asked for."""
        if self.memory is None:
            return None
        found = _MEMORY.fullmatch(self.memory)
        if found is None:
            raise UsageError(f"--mem {self.memory!r} is no amount", remedy="a number with K, M, G or T after it: 64G")
        number, unit = found.groups()
        return max(1, round(int(number) * _MEBIBYTES[unit]))


def train_devices(request: Request) -> list[str]:
    """The options of `flambeau train` for the devices of a node."""
    if request.gpus:
        return ["-d", ",".join(map(str, range(request.gpus)))]
    return ["-d", "cpu", *(["--processes", str(request.processes)] if request.processes > 1 else [])]


def matching(option: str, value: str, pattern: str, meaning: str) -> str:
    """A value that may stand in a job's description as it is; others cannot be meant, or mean harm.

    Raises:
        UsageError: `value` is not of the form `pattern`.
    """
    if re.fullmatch(pattern, value, re.ASCII) is None:
        raise UsageError(f"{option} {value!r} cannot be used", remedy=f"it takes {meaning}")
    return value
