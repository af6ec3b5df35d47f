"""Copies of a state's tensors in host memory, taken at once and written later.

Training goes on as soon as the copy is there, so the copy is all that a save costs the training loop. The
memory is kept between saves: to ask for it anew would cost more than to fill it (a page fault per 4 KiB).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flambeau.checkpoint.tensors_file import StoredTensor, storage_of
from flambeau.checkpoint.tree import Leaf
from flambeau.errors import CheckpointError

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class _Slot:
    """Host memory for one tensor, and how a file stores it."""

    key: tuple[Any, ...]
    buffer: Any
    code: str
    shape: tuple[int, ...]
    data: memoryview
    raw_dtype: str | None
    """Name of the dtype, if the format lacks it and the file holds raw bytes."""


class HostCopies:
    """Host memory that each snapshot fills again. One snapshot at a time: the next overwrites it."""

    def __init__(self) -> None:
        self._slots: dict[tuple[str, str], _Slot] = {}

    def take(self, leaves: Iterable[Leaf]) -> dict[str, list[StoredTensor]]:
        """Copy every leaf; returns what to write, by file, and completes the leaves' nodes.

        Tensors that are one and the same (tied weights) are copied once. Copies from CUDA devices go to
        pinned memory and run side by side; all have arrived when this returns.
        """
        leaves = list(leaves)
        devices: set[torch.device] = set()
        if "torch" not in sys.modules:
            return self._take(leaves, devices)
        import torch

        # Later saves write this memory again, so it must become part of no graph and no inference mode.
        with torch.inference_mode(False), torch.no_grad():
            stored = self._take(leaves, devices)
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return stored

    def clear(self) -> None:
        """Give the memory back."""
        self._slots.clear()

    def _take(self, leaves: list[Leaf], devices: set[torch.device]) -> dict[str, list[StoredTensor]]:
        slots: dict[tuple[str, str], _Slot] = {}
        tied: dict[tuple[Any, ...], _Slot] = {}
        stored: dict[str, list[StoredTensor]] = {}
        for leaf in leaves:
            value = leaf.value
            identity = _identity(value)
            slot = tied.get(identity)
            if slot is None:
                slot = self._filled(leaf, devices)
                slots[leaf.file, leaf.name] = tied[identity] = slot
            if slot.raw_dtype is not None:
                leaf.node["dtype"] = slot.raw_dtype
                leaf.node["shape"] = list(value.shape)
            stored.setdefault(leaf.file, []).append(StoredTensor(leaf.name, slot.code, slot.shape, slot.data))
        self._slots = slots
        return stored

    def _filled(self, leaf: Leaf, devices: set[torch.device]) -> _Slot:
        value = leaf.value
        slot = self._slots.get((leaf.file, leaf.name))
        key = _layout(value)
        if slot is None or slot.key != key:
            slot = _new_slot(value, key)
        if isinstance(value, np.ndarray):
            np.copyto(slot.buffer, value, casting="no")
            return slot
        try:
            slot.buffer.copy_(value, non_blocking=value.is_cuda)
        except NotImplementedError as error:
            raise CheckpointError(f"{leaf.name}: torch cannot copy its dtype {value.dtype}: {error}") from error
        if value.is_cuda:
            devices.add(value.device)
        return slot


def _identity(value: torch.Tensor | np.ndarray[Any, Any]) -> tuple[Any, ...]:
    """Equal for two tensors only if they are the same elements of the same memory in the same order."""
    if isinstance(value, np.ndarray):
        return ("numpy", value.__array_interface__["data"], value.dtype, value.shape, value.strides)
    return (
        value.device,
        value.data_ptr(),
        value.dtype,
        value.shape,
        value.stride(),
        value.is_conj(),
        value.is_neg(),
    )


def _layout(value: torch.Tensor | np.ndarray[Any, Any]) -> tuple[Any, ...]:
    if isinstance(value, np.ndarray):
        return ("numpy", value.dtype, value.shape)
    return ("cuda" if value.is_cuda else "torch", value.dtype, value.shape)


def _new_slot(value: torch.Tensor | np.ndarray[Any, Any], key: tuple[Any, ...]) -> _Slot:
    shape = tuple(value.shape)
    if isinstance(value, np.ndarray):
        array = np.empty(shape, dtype=value.dtype)
        code, stored_shape = storage_of(value.dtype, value.dtype.itemsize, shape)
        data = array.reshape(-1).view(np.uint8).data
        return _Slot(key, array, code, stored_shape, data, None if stored_shape == shape else value.dtype.str)
    import torch

    tensor = torch.empty(shape, dtype=value.dtype, pin_memory=value.is_cuda)
    name = str(value.dtype).removeprefix("torch.")
    code, stored_shape = storage_of(name, value.element_size(), shape)
    data = tensor.reshape(-1).view(torch.uint8).numpy().data
    return _Slot(key, tensor, code, stored_shape, data, None if stored_shape == shape else name)
