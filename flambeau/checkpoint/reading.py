"""One checkpoint on disk: what it says of itself, whether it is whole, and what it holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flambeau.checkpoint.publish import FileRecord, record_of
from flambeau.checkpoint.tensors_file import TensorReader
from flambeau.checkpoint.tree import decode, tensor_file
from flambeau.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from flambeau.checkpoint.shards import StoredPieces

FORMAT = 2
"""The newest format that is read; grows when an older Flambeau could not read what is written."""
FORMAT_OF_ONE = 1
"""The format of what one process has written."""
FORMAT_OF_MANY = 2
"""The format of what several processes have written together, each its pieces."""
Like = Callable[[str, tuple[int, ...]], "torch.Tensor | None"]
"""Gives, for a tensor's name (`model.head.weight`, `optimizer.state.0.exp_avg`) and shape, a tensor that is sharded as
it is to be; None for one that is to be whole."""
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

    def verify(self, part: int = 0, parts: int = 1) -> None:
        """Read every file and compare it with the manifest.

        Args:
            part, parts: which share of the files to read, of how many: processes may divide them.

        Raises:
            CheckpointError: a file is missing, changed or unreadable; the message names it.
        """
        for name in sorted(self.manifest["files"])[part::parts]:
            expected = self.manifest["files"][name]
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

    def load(self, *parts: str, device: str | torch.device = "cpu", like: Like | None = None) -> dict[str, Any]:
        """The saved state, or only the named parts of it: `load("model")["model"]` are the weights.

        Args:
            parts: top-level keys of the state; none for all. Only the files that hold them are read.
            device: where all torch tensors go.
            like: of which tensors this process is to get a piece, and which; default: all are whole, however they
                were saved.

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
            loading = _Loading(self, device, like)
            state = {part: loading.part(part, tree[part]) for part in parts or tree}
            loading.fill()
            return state
        except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
            raise CheckpointError(f"{self.path} cannot be loaded: {type(error).__name__}: {error}") from error

    def stored(self, part: str) -> Any:
        """A part of the state with, in place of each torch tensor, where it lies (`StoredPieces`). Reads no tensor.

        Raises:
            CheckpointError: as for `load`.
        """
        from safetensors import SafetensorError

        try:
            node = json.loads((self.path / TREE).read_bytes())[part]
            return _Loading(self, "cpu", None).stored(part, node)
        except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
            raise CheckpointError(f"{self.path} cannot be loaded: {type(error).__name__}: {error}") from error


class _Loading:
    """One reading of a checkpoint: whole tensors at once, those in pieces together at the end."""

    def __init__(self, checkpoint: Checkpoint, device: str | torch.device, like: Like | None) -> None:
        self._path = checkpoint.path
        self._device = device
        self._like = like
        self._stored: dict[str, StoredPieces] = {}
        if checkpoint.manifest["format"] >= FORMAT_OF_MANY:
            from flambeau.checkpoint.shards import read_index

            self._stored = read_index(self._path)
        self._targets: dict[str, torch.Tensor] = {}

    def part(self, part: str, node: Any) -> Any:
        """A top-level key's value; the content of some of its tensors comes with `fill`."""
        file = tensor_file(part)
        prefix = f"{part}." if file != tensor_file("") else ""

        def fetch(leaf: dict[str, Any]) -> Any:
            if "$array" in leaf:
                return reader.array(leaf)
            if "$sharded" in leaf:
                return self._later(leaf["$sharded"])
            name = prefix + leaf["$tensor"]
            if self._like is not None and self._like(name, (stored := reader.stored(leaf)).shape) is not None:
                self._stored[name] = stored
                return self._later(name)
            return reader.tensor(leaf)

        with TensorReader(self._path / file, self._device) as reader:
            return decode(node, fetch)

    def stored(self, part: str, node: Any) -> Any:
        """A top-level key's value with the places of its torch tensors in place of them."""

        def fetch(leaf: dict[str, Any]) -> Any:
            if "$sharded" in leaf:
                return self._stored[leaf["$sharded"]]
            return reader.stored(leaf) if "$tensor" in leaf else reader.array(leaf)

        with TensorReader(self._path / tensor_file(part), "cpu") as reader:
            return decode(node, fetch)

    def fill(self) -> None:
        """Read all that is to be read in pieces."""
        if self._targets:
            from flambeau.checkpoint.shards import read_pieces

            read_pieces(self._path, self._stored, self._targets)

    def _later(self, name: str) -> torch.Tensor:
        import torch

        stored = self._stored[name]
        model = self._like(name, stored.shape) if self._like is not None else None
        if model is not None:
            self._targets[name] = torch.empty_like(model, dtype=stored.dtype, requires_grad=False)
        else:
            self._targets[name] = torch.empty(stored.shape, dtype=stored.dtype, device=self._device)
        return self._targets[name]


def manifest_bytes(content: Mapping[str, Any]) -> bytes:
    """The text of a manifest: its content, and the content's own checksum."""
    return json.dumps({**content, "sha256": _checksum(content)}, indent=1).encode()


def _checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's content, whatever the layout of its text."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"checkpoint {path.name} is damaged: {what}")
