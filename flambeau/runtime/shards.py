"""Tensors that lie in pieces over several processes (torch's DTensor): the piece that lies here.

`torch.distributed.tensor` takes a second to import, and a run that shards nothing never needs it, so a sharded tensor
is told by what it can do. All functions are to be called without gradient tracking.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

_PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is one of torch's distributed tensors."""
    return type(tensor) not in _PLAIN and hasattr(tensor, "to_local")


def local_part(tensor: Any) -> Any:
    """The memory of a sharded tensor that lies in this process; anything else is itself."""
    if not isinstance(tensor, Tensor) or not is_sharded(tensor):
        return tensor
    local: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return local


def local_parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """`local_part` of each."""
    return [local_part(tensor) for tensor in tensors]


def group_of(tensors: Iterable[Tensor]) -> Any:
    """The group of the processes that the first sharded one of `tensors` lies in; None if none is sharded."""
    for tensor in tensors:
        if is_sharded(tensor):
            return tensor.device_mesh.get_group()  # type: ignore[attr-defined]
    return None


def lie_apart(tensors: Sequence[Tensor]) -> bool:
    """Whether each of `tensors` is cut into disjoint pieces over the same processes, so that sums of pieces add up."""
    first = tensors[0]
    return all(
        is_sharded(tensor)
        and tensor.device_mesh == first.device_mesh  # type: ignore[attr-defined]
        and all(placement.is_shard() for placement in tensor.placements)  # type: ignore[attr-defined]
        for tensor in tensors
    )


def true_everywhere(value: Tensor, group: Any) -> bool:
    """Whether a truth value holds in all processes of a group; `group` None: in this one."""
    if group is not None:
        value = value.to(torch.int32)
        dist.all_reduce(value, dist.ReduceOp.MIN, group=group)
    return bool(value)


def class_name(module: torch.nn.Module) -> str:
    """The name of a module's own class: `fully_shard` gives the module one that stands before it."""
    return next(
        cls.__name__ for cls in type(module).__mro__ if not any(base.__name__ == "FSDPModule" for base in cls.__mro__)
    )
