"""Weights as a source has them: names, shapes and types at once, values when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flambeau.checkpoint.publish import record_of


@dataclass(frozen=True)
class Stored:
    """One tensor of a source."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Weights:
    """The named tensors of a source."""

    origin: str
    """What they are, for people: `runs/a, checkpoint of step 180`."""
    tensors: Mapping[str, Stored]
    read: Callable[[str], Tensor]
    """Gives a tensor by its name, on the CPU; may be a view of a file."""
    files: tuple[Path, ...]
    """The files that they are read from."""
    known: Mapping[str, Any] = field(default_factory=dict)
    """What else the record of a run says of them: a checkpoint's step, a revision."""
    hashes: Mapping[str, str] | None = None
    """SHA-256 of the files by name, if they have been compared already."""

    def record(self) -> dict[str, Any]:
        """What a run's record says of their origin: files with SHA-256, which takes one reading of each."""
        hashes = self.hashes
        if hashes is None:
            hashes = {file.name: record_of(file).sha256 for file in self.files}
        folder = str(self.files[0].absolute().parent) if self.files else None
        return {"origin": self.origin, "folder": folder, "sha256": dict(hashes), **self.known}
