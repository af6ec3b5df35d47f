"""One checkpoint on disk: what it says of itself, whether it is whole, and what it holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flambeau.checkpoint.publish import FileRecord, record_of
from flambeau.checkpoint.tensors_file import TensorReader
from flambeau.checkpoint.tree import decode, tensor_file
from flambeau.errors import CheckpointError

if TYPE_CHECKING:
    import torch

FORMAT = 1
"""Version of the format; grows when an older Flambeau could not read what is written."""
MANIFEST = "manifest.json"
TREE = "state.json"


class NewerFormatError(CheckpointError):
    """A checkpoint was written by a Flambeau newer than this one."""


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint."""

    path: Path
    """Its directory."""
    step: int
    """Optimizer steps done when it was taken."""
    score: float | None
    """The monitored score at that step, if it had one."""
    manifest: Mapping[str, Any]
    """All that its manifest says: versions, and size and SHA-256 of each file."""

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read a checkpoint's manifest.

        Raises:
            CheckpointError: it cannot be read, is damaged, or was written by a newer Flambeau.
        """
        try:
            text = (path / MANIFEST).read_bytes()
        except FileNotFoundError:
            raise _damaged(path, f"{MANIFEST} is missing") from None
        except OSError as error:
            raise CheckpointError(f"{path / MANIFEST} cannot be read: {error.strerror}") from error
        try:
            manifest = json.loads(text)
            checksum = manifest.pop("sha256")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _damaged(path, f"{MANIFEST} is not what was written") from None
        if _checksum(manifest) != checksum:
            raise _damaged(path, f"{MANIFEST} does not match its checksum")
        if manifest["format"] > FORMAT:
            raise NewerFormatError(
                f"{path} has format {manifest['format']}, this Flambeau reads up to {FORMAT}",
                remedy=f"use Flambeau {manifest['flambeau']} or newer",
            )
        score = manifest["score"]
        return cls(path, manifest["step"], None if score is None else float(score), manifest)

    def verify(self) -> None:
        """Read every file and compare it with the manifest.

        Raises:
            CheckpointError: a file is missing, changed or unreadable; the message names it.
        """
        for name, expected in self.manifest["files"].items():
            file = self.path / name
            try:
                size = file.stat().st_size
                if size != expected["size"]:
                    raise _damaged(self.path, f"{name} has {size} bytes instead of {expected['size']}")
                if record_of(file) != FileRecord(**expected):
                    raise _damaged(self.path, f"{name} does not match its checksum")
            except FileNotFoundError:
                raise _damaged(self.path, f"{name} is missing") from None
            except OSError as error:
                raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error

    def load(self, *parts: str, device: str | torch.device = "cpu") -> dict[str, Any]:
        """The saved state, or only the named parts of it: `load("model")["model"]` are the weights.

        Args:
            parts: top-level keys of the state; none for all. Only the files that hold them are read.
            device: where all torch tensors go.

        Raises:
            CheckpointError: a part that the checkpoint does not have, or a file that cannot be read.
        """
        from safetensors import SafetensorError

        try:
            tree = json.loads((self.path / TREE).read_bytes())
            absent = [part for part in parts if part not in tree]
            if absent:
                raise CheckpointError(
                    f"{self.path} holds no part {', '.join(map(repr, absent))}",
                    remedy=f"it holds {', '.join(map(repr, tree))}",
                )
            return {part: self._part(part, tree[part], device) for part in parts or tree}
        except (OSError, ValueError, LookupError, SafetensorError) as error:
            raise CheckpointError(f"{self.path} cannot be loaded: {type(error).__name__}: {error}") from error

    def _part(self, part: str, node: Any, device: str | torch.device) -> Any:
        with TensorReader(self.path / tensor_file(part), device) as reader:
            return decode(node, lambda leaf: reader.tensor(leaf) if "$tensor" in leaf else reader.array(leaf))


def manifest_bytes(content: Mapping[str, Any]) -> bytes:
    """The text of a manifest: its content, and the content's own checksum."""
    return json.dumps({**content, "sha256": _checksum(content)}, indent=1).encode()


def _checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's content, whatever the layout of its text."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"checkpoint {path.name} is damaged: {what}")
