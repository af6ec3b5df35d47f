"""A checkpoint's weights as one file that other programs read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from flambeau.checkpoint import publish
from flambeau.checkpoint.failure import cause_of
from flambeau.checkpoint.reading import Checkpoint
from flambeau.checkpoint.shards import StoredPieces, read_pieces
from flambeau.checkpoint.tensors_file import TORCH_CODES, safetensors_chunks
from flambeau.errors import CheckpointError


def export_safetensors(checkpoint: Checkpoint, part: str, output: Path) -> int:
    """Write the weights of a checkpoint, in pieces or not, into one safetensors file under their plain names.

    One tensor at a time is in memory. The file is whole or absent: it is written beside its name, flushed, read back
    and renamed.

    Args:
        part: `model`, or `ema` for the average.
        output: the file; one that is there is replaced.

    Returns:
        Its size in bytes.

    Raises:
        CheckpointError: the format cannot hold a weight, or a file cannot be read or written.
    """
    weights = [_Weight(checkpoint.path, name, stored) for name, stored in _weights(checkpoint, part)]
    temporary = output.with_name(f"{publish.TEMPORARY}{output.name}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    try:
        record = publish.write_file(temporary, safetensors_chunks(weights))
        temporary.replace(output)
        publish.flush(output.parent)
    except (OSError, publish.LostWriteError) as error:
        cause, remedy = cause_of(error)
        raise CheckpointError(f"{output} was not written: {cause}", remedy=remedy) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return record.size


@dataclass(frozen=True)
class _Weight:
    """One tensor of the file, read when it is its turn."""

    folder: Path
    name: str
    stored: StoredPieces

    @property
    def code(self) -> str:
        return TORCH_CODES[str(self.stored.dtype).removeprefix("torch.")]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def data(self) -> memoryview:
        whole = torch.empty(self.stored.shape, dtype=self.stored.dtype)
        read_pieces(self.folder, {self.name: self.stored}, {self.name: whole})
        data: memoryview = whole.reshape(-1).view(torch.uint8).numpy().data
        return data


def _weights(checkpoint: Checkpoint, part: str) -> Iterator[tuple[str, StoredPieces]]:
    for name, stored in checkpoint.stored(part).items():
        if not isinstance(stored, StoredPieces):
            raise CheckpointError(f"'{name}' of {checkpoint.path} is a {type(stored).__name__}, and no tensor")
        if str(stored.dtype).removeprefix("torch.") not in TORCH_CODES:
            raise CheckpointError(f"'{name}' of {checkpoint.path} is of {stored.dtype}, which safetensors cannot hold")
        yield name, stored
