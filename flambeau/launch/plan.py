"""What the command line says of devices, processes and machines, checked before anything is started."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass

from flambeau.errors import UsageError
from flambeau.launch import environment

ELASTIC_RESTARTS = 3
"""Restarts that a run with a changing number of machines has by default: to lose a machine is one."""


@dataclass(frozen=True)
class Plan:
    """How many processes train, and where."""

    device: str = "auto"
    """As it was asked for: `auto`, `cpu`, `0`, `cuda:1`, or several devices with commas between."""
    processes: int = 1
    """On this machine."""
    nodes: tuple[int, int] = (1, 1)
    """The least and the most machines."""
    node_rank: int | None = None
    """The number of this machine."""
    master: tuple[str, int] | None = None
    """Where the machines meet: address of machine 0, and a port that is free there."""
    max_restarts: int = 0

    @property
    def is_elastic(self) -> bool:
        """Whether machines may come and go."""
        return self.nodes[0] != self.nodes[1]

    @property
    def needs_launcher(self) -> bool:
        """Whether this process has to start others, and is not itself one that was started."""
        several = self.processes > 1 or self.nodes != (1, 1) or self.max_restarts > 0
        return several and not environment.is_worker()

    @property
    def devices(self) -> list[str]:
        """The devices that were named, or the one word."""
        return self.device.split(",")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Declare `-d` for a command that uses one device, or several."""
    parser.add_argument(
        "-d",
        "--device",
        default="auto",
        help="cpu, auto, a number (0), a name (cuda:0), or several (0,1): one process each; default: auto",
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Declare the number of processes on this machine."""
    parser.add_argument(
        "--processes", type=int, metavar="N", help="processes on this machine, e.g. -d cpu --processes 4"
    )


def add_machines(parser: argparse.ArgumentParser) -> None:
    """Declare what a run over several machines needs."""
    group = parser.add_argument_group("several machines, the same command on each")
    group.add_argument("--nodes", default="1", metavar="N", help="machines; MIN:MAX if they may come and go")
    group.add_argument("--node-rank", type=int, metavar="K", help="the number of this machine, from 0")
    group.add_argument("--master", metavar="ADDR:PORT", help="address of machine 0, and a port that is free there")
    group.add_argument(
        "--max-restarts",
        type=int,
        metavar="N",
        help=f"start the processes again after a failure, N times at most; default: 0, with MIN:MAX {ELASTIC_RESTARTS}",
    )


def plan_of(args: argparse.Namespace) -> Plan:
    """The plan that parsed arguments make.

    Raises:
        UsageError: they contradict each other. Whether the devices exist is not looked at.
    """
    processes = _count_processes(args.device, args.processes)
    nodes = _read_nodes(getattr(args, "nodes", "1"))
    node_rank, master = getattr(args, "node_rank", None), getattr(args, "master", None)
    elastic, most = nodes[0] != nodes[1], nodes[1]
    if most == 1 and (node_rank is not None or master is not None):
        raise UsageError("--node-rank and --master are for several machines", remedy="say how many: --nodes 2")
    if most > 1 and not environment.is_worker():
        if master is None:
            raise UsageError(
                "the machines have to meet somewhere", remedy="--master ADDR:PORT, with machine 0's address"
            )
        if node_rank is None and not elastic:
            raise UsageError(
                "each machine needs its number", remedy=f"--node-rank 0 on one, up to {most - 1} on the last"
            )
        if node_rank is not None and not 0 <= node_rank < most:
            raise UsageError(f"--node-rank {node_rank}: the machines are numbered from 0 to {most - 1}")
    restarts = getattr(args, "max_restarts", None)
    if restarts is not None and restarts < 0:
        raise UsageError(f"--max-restarts {restarts}: a number from 0 on is needed")
    return Plan(
        device=args.device,
        processes=processes,
        nodes=nodes,
        node_rank=node_rank,
        master=_read_address(master) if master is not None else None,
        max_restarts=restarts if restarts is not None else ELASTIC_RESTARTS if elastic else 0,
    )


def _count_processes(device: str, asked: int | None) -> int:
    if asked is not None and asked < 1:
        raise UsageError(f"--processes {asked}: at least one is needed")
    names = device.split(",")
    if len(names) > 1:
        _check_names(names)
        if asked not in (None, len(names)):
            raise UsageError(f"-d {device} names {len(names)} devices, and --processes asks for {asked} processes")
        _check_launched(len(names), f"-d {device}")
        return len(names)
    if asked is None:
        return 1
    if asked > 1 and device not in ("cpu", "auto"):
        raise UsageError(f"-d {device} is one device, and {asked} processes were asked for", remedy="name all: -d 0,1")
    _check_launched(asked, f"--processes {asked}")
    return asked


def _check_names(names: list[str]) -> None:
    wrong = [name for name in names if not re.fullmatch(r"(cuda:)?\d+", name)]
    if wrong:
        raise UsageError(
            f"-d {','.join(names)}: '{wrong[0]}' is no CUDA device",
            remedy="several devices are named by number (0,1); for several processes on the CPU: -d cpu --processes 2",
        )
    numbers = [int(name.removeprefix("cuda:")) for name in names]
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"-d {','.join(names)} names a device twice")


def _check_launched(processes: int, what: str) -> None:
    """Under a launcher: it has started as many processes as the command line speaks of."""
    started = os.environ.get("LOCAL_WORLD_SIZE")
    if environment.is_worker() and started is not None and int(started) != processes:
        raise UsageError(f"{what} is for {processes} processes on a machine, and the launcher started {started}")


def _read_nodes(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    if found is None:
        raise UsageError(f"--nodes {text}: a number or MIN:MAX is needed", remedy="e.g. --nodes 2, or --nodes 1:4")
    least, most = int(found[1]), int(found[2] or found[1])
    if not 1 <= least <= most:
        raise UsageError(f"--nodes {text}: at least one machine is needed, and MIN no larger than MAX")
    return least, most


def _read_address(text: str) -> tuple[str, int]:
    """`10.0.0.1:29500`, `host:29500`, `[fe80::1]:29500`."""
    found = re.fullmatch(r"(\[[^\]]+\]|[^:\s]+):(\d+)", text)
    if found is None or not 0 < int(found[2]) < 65536:
        raise UsageError(f"--master {text}: ADDR:PORT is needed", remedy="e.g. --master 10.0.0.1:29500")
    return found[1].strip("[]"), int(found[2])
