"""Tensors that a checkpoint holds in pieces: where each piece lies, and reading what one process needs of them.

`shards.json` says of each tensor its dtype, its shape, and for each piece which process wrote it, where it begins and
how large it is:

    {"tensors": {"model.head.weight": {"dtype": "float32", "shape": [10, 64],
                                       "chunks": [[0, [0, 0], [5, 64]], [1, [5, 0], [5, 64]]]}}}

The pieces of process 3 are in `rank-00003.safetensors`, under the tensors' names. This file stands in place of the
pickled `.metadata` of `torch.distributed.checkpoint`; planning and cutting are torch's own, through `ShardReader`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from flambeau.checkpoint.tensors_file import TORCH_CODES
from flambeau.errors import CheckpointError

INDEX = "shards.json"


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a tensor."""

    file: str
    name: str
    """Its name in the file."""
    offsets: tuple[int, ...]
    """Where it begins in the tensor."""
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredPieces:
    """One tensor of a checkpoint."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


def file_of(rank: int) -> str:
    """The file of a process's pieces."""
    return f"rank-{rank:05d}.safetensors"


def read_index(folder: Path) -> dict[str, StoredPieces]:
    """What `shards.json` says.

    Raises:
        OSError, ValueError, LookupError, TypeError: it cannot be read, or is not what was written.
    """
    content = json.loads((folder / INDEX).read_bytes())
    return {
        name: StoredPieces(
            dtype_named(entry["dtype"]),
            tuple(entry["shape"]),
            tuple(Chunk(file_of(rank), name, tuple(start), tuple(sizes)) for rank, start, sizes in entry["chunks"]),
        )
        for name, entry in content["tensors"].items()
    }


def index_bytes(tensors: Mapping[str, TensorStorageMetadata], writers: Mapping[MetadataIndex, int]) -> bytes:
    """The text of `shards.json`.

    Args:
        tensors: torch's description of each tensor.
        writers: the process that wrote each piece.
    """
    entries = {}
    for name, tensor in tensors.items():
        chunks = [
            [writers[MetadataIndex(name, chunk.offsets)], list(chunk.offsets), list(chunk.sizes)]
            for chunk in tensor.chunks
        ]
        dtype = str(tensor.properties.dtype).removeprefix("torch.")
        entries[name] = {"dtype": dtype, "shape": list(tensor.size), "chunks": chunks}
    return json.dumps({"tensors": entries}, separators=(",", ":")).encode()


def dtype_named(name: str) -> torch.dtype:
    """`float32` as a dtype."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"unknown dtype {name!r}")
    return dtype


class ShardReader(StorageReader):
    """Reads a sharded checkpoint for `torch.distributed.checkpoint`: `load(state, storage_reader=ShardReader(path))`.

    Args:
        folder: the checkpoint's directory.
        tensors: where each tensor lies; default: what `shards.json` says.
    """

    def __init__(self, folder: Path | str, tensors: Mapping[str, StoredPieces] | None = None) -> None:
        self._folder = Path(folder)
        self._tensors = read_index(self._folder) if tensors is None else tensors
        self._chunks = {
            MetadataIndex(name, chunk.offsets): (tensor.dtype, chunk)
            for name, tensor in self._tensors.items()
            for chunk in tensor.chunks
        }

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one reading to the next."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index, as torch's planners know it."""
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(dtype=tensor.dtype),
                    torch.Size(tensor.shape),
                    [
                        ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes))
                        for chunk in tensor.chunks
                    ],
                )
                for name, tensor in self._tensors.items()
            }
        )

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """All is known from the start."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """A plan of one process, as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans of all processes, as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what a plan asks for, and no more, into the tensors that the planner gives."""
        from safetensors import safe_open

        with ExitStack() as stack:
            files: dict[str, Any] = {}
            for item in plan.items:
                dtype, chunk = self._chunks[item.storage_index]
                if chunk.file not in files:
                    opened: Any = safe_open(str(self._folder / chunk.file), framework="pt", device="cpu")
                    files[chunk.file] = stack.enter_context(opened)
                piece = _cut(files[chunk.file], chunk, dtype, item.storage_offsets, item.lengths)
                target = planner.resolve_tensor(item).detach()
                target.copy_(piece)
                planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Whether it is the directory of a sharded checkpoint."""
        return (Path(checkpoint_id) / INDEX).is_file()


@torch.no_grad()
def read_pieces(folder: Path, stored: Mapping[str, StoredPieces], targets: Mapping[str, Tensor]) -> None:
    """Fill tensors, whole or sharded, from wherever their values lie. No process waits for another.

    Args:
        stored: where each tensor lies, by name.
        targets: by the same names, with the same shapes.

    Raises:
        CheckpointError: not all elements of a tensor are there.
    """
    reader = ShardReader(folder, {name: stored[name] for name in targets})
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(targets), reader.read_metadata(), is_coordinator=False)
    plan = planner.create_local_plan()
    missing = {name: _held(target) for name, target in targets.items()}
    for item in plan.items:
        missing[item.dest_index.fqn] -= item.lengths.numel()
    if absent := [name for name, count in missing.items() if count]:
        raise CheckpointError(f"{folder / INDEX} does not say where all of '{absent[0]}' lies")
    reader.read_data(plan, planner).wait()


def _held(target: Tensor) -> int:
    """Elements of a tensor that this process holds."""
    if not hasattr(target, "__create_chunk_list__"):
        return target.numel()
    return sum(chunk.sizes.numel() for chunk in target.__create_chunk_list__())


def _cut(file: Any, chunk: Chunk, dtype: torch.dtype, offsets: Iterable[int], lengths: Iterable[int]) -> Tensor:
    """A part of a piece."""
    name = str(dtype).removeprefix("torch.")
    if not chunk.sizes:
        piece: Tensor = file.get_tensor(chunk.name)
    else:
        index = tuple(slice(start, start + length) for start, length in zip(offsets, lengths, strict=True))
        piece = file.get_slice(chunk.name)[index]
    if name in TORCH_CODES:
        return piece
    # The bytes of an element are one more dimension, and lie in the mapped file at any address.
    return piece.clone(memory_format=torch.contiguous_format).view(dtype).squeeze(-1)
