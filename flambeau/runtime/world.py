"""The processes that train together: which of them this is, and how they talk about other things than gradients.

A launcher (torchrun, `flambeau train -d 0,1`, srun) says through the environment which process this is; `join` makes
the process group. Everything that is not a tensor of the model goes as JSON over a gloo group of its own, so that a
message can wait neither for an accelerator nor behind gradients.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

from flambeau.errors import UsageError
from flambeau.runtime.fresh_store import fresh_store, is_kept_over_restarts


@dataclass(frozen=True)
class World:
    """The processes of one run, seen from one of them.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process among those of its machine.
        local_size: processes on this machine.
        control: the gloo group for messages between processes; None for one process.
        name: of this meeting of processes, which no other has, before it or after it.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    control: Any = None
    name: str = ""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes the run's record: rank 0."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes in the order of their ranks, in every process.

        Args:
            value: what JSON can say; floats (NaN and the infinities too) arrive as the same bits. Tuples become lists.
        """
        if self.size == 1:
            return [value]
        return [json.loads(message) for message in self.gather_bytes(json.dumps(value).encode())]

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """The messages of all processes in the order of their ranks, in every process."""
        if self.size == 1:
            return [data]
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(data)]), group=self.control)
        longest = max(int(length) for length in lengths)
        if not longest:
            return [b""] * self.size
        padded = torch.zeros(longest, dtype=torch.uint8)
        if data:
            padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        received = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(received, padded, group=self.control)
        return [bytes(message[: int(length)].numpy()) for message, length in zip(received, lengths, strict=True)]

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value (what JSON can say), in every process."""
        if self.size == 1:
            return value
        data = json.dumps(value).encode() if self.is_main else b""
        length = torch.tensor([len(data)])
        dist.broadcast(length, 0, group=self.control)
        message = torch.zeros(int(length), dtype=torch.uint8)
        if self.is_main:
            message = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        dist.broadcast(message, 0, group=self.control)
        return json.loads(bytes(message.numpy()))

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.gather(None)


_joined: World | None = None


def launched_size() -> int:
    """The number of processes that a launcher started for this run; 1 without one. Does not need the group."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def launched_rank() -> int:
    """The number of this process among those that a launcher started; 0 without one. Does not need the group."""
    return int(os.environ["RANK"]) if launched_size() > 1 else 0


def current_world() -> World:
    """The processes that this one trains with; joins them first where a launcher started several."""
    if _joined is not None:
        return _joined
    return join_world() if launched_size() > 1 else World()


def join_world(timeout: timedelta = timedelta(minutes=30)) -> World:
    """Make the process group that the launcher's environment describes.

    NCCL carries what lies on CUDA devices, gloo the rest.

    Args:
        timeout: how long a collective may take before it fails.

    Raises:
        UsageError: the environment is not whole, or torch has no support for processes.
    """
    global _joined
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(
            f"several processes were started without {', '.join(missing)} in the environment",
            remedy="start them with flambeau train -d 0,1, with torchrun, or with flambeau submit",
        )
    if not dist.is_available():
        raise UsageError("this build of torch cannot train in several processes")
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        store = fresh_store(timeout) if is_kept_over_restarts() else None
        rank, size = (int(os.environ["RANK"]), launched_size()) if store is not None else (-1, -1)  # -1: torch looks
        dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=size)
    _joined = World(
        rank=dist.get_rank(),
        size=dist.get_world_size(),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        control=dist.new_group(backend="gloo", timeout=timeout),
    )
    _joined = replace(_joined, name=_joined.broadcast(secrets.token_hex(8)))
    return _joined


def leave_world() -> None:
    """Take the process group down, where there is one: after a run that ended well.

    After an error nobody may call this: it would wait for processes that are gone.
    """
    global _joined
    if _joined is not None:
        _joined = None
        dist.destroy_process_group()


@contextmanager
def world_of_run() -> Iterator[World]:
    """The processes of a run for as long as the block goes well; an error leaves the group as it is, to end at once."""
    world = current_world()
    yield world
    leave_world()
