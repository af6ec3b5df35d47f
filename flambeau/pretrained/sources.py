"""From a path in a configuration to weights: what lies there, and which of it is meant."""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import Tensor

from flambeau.checkpoint.of_run import checkpoint_of_run, judged_part
from flambeau.checkpoint.reading import MANIFEST, Checkpoint
from flambeau.checkpoint.shards import StoredPieces, read_pieces
from flambeau.checkpoint.tree import tensor_file
from flambeau.config.sections import PretrainedSettings
from flambeau.config.start_points import read_place
from flambeau.errors import CheckpointError, UsageError
from flambeau.pretrained.files import find_weights, read_file
from flambeau.pretrained.hub import read_hub, read_timm
from flambeau.pretrained.weights import Stored, Weights
from flambeau.run_folder import RunFolder


def open_weights(settings: PretrainedSettings, root: Path | None = None) -> Weights:
    """The weights that a start point names; of those on the hub, fetched.

    Args:
        root: a second folder, beside the working directory, that a relative path may start from.

    Raises:
        UsageError: they are not there, or not what they should be.
    """
    try:
        place = read_place(settings.path)
    except ValueError as error:
        raise UsageError(f"pretrained: {error}") from error
    if place.kind == "hub":
        return read_hub(place, settings.path, key=settings.key)
    if place.kind == "timm":
        return read_timm(place, settings.path)
    path = _find(place.name, root)
    if path.is_file():
        return read_file(path, key=settings.key, shown=settings.path)
    if (path / "status.json").is_file():
        return _of_run(path, settings)
    if (path / MANIFEST).is_file():
        return _of_checkpoint(path, settings)
    if (file := find_weights(path)) is not None:
        return read_file(file, shown=f"{settings.path} ({file.name})")
    raise UsageError(
        f"{settings.path} is neither a run, nor a checkpoint, nor a folder with safetensors weights",
        remedy="give one of these, or a file",
    )


def _find(name: str, root: Path | None) -> Path:
    path = Path(name).expanduser()
    places = [path] if path.is_absolute() or root is None else [path, root / path]
    for place in places:
        if place.exists():
            return place
    where = f", neither from {Path.cwd()} nor from {root}" if len({p.absolute() for p in places}) > 1 else ""
    raise UsageError(f"{name} does not exist{where}", remedy="`flambeau runs` lists the runs")


def _of_run(path: Path, settings: PretrainedSettings) -> Weights:
    folder = RunFolder.open(path)
    which = settings.checkpoint if settings.checkpoint is not None else "best"
    try:
        checkpoint = checkpoint_of_run(folder, which, warn=_warn)
    except CheckpointError as error:
        raise UsageError(f"{settings.path}: {error.message}", remedy=error.remedy) from error
    part = judged_part(folder) if settings.weights == "auto" else settings.weights
    return weights_of(checkpoint, part, shown=settings.path)


def _of_checkpoint(path: Path, settings: PretrainedSettings) -> Weights:
    if settings.checkpoint is not None:
        raise UsageError(
            f"pretrained: {settings.path} is a checkpoint itself, and `checkpoint: {settings.checkpoint}` chooses one",
            remedy="leave `checkpoint` out, or give the run's folder",
        )
    part = settings.weights
    path = path.resolve()  # `best` is a link to a step, which training may turn elsewhere
    if part == "auto":
        run = path.parent.parent
        part = judged_part(RunFolder(run)) if (run / "status.json").is_file() else "model"  # type: ignore[assignment]
    try:
        checkpoint = Checkpoint.open(path)
        checkpoint.verify()
    except CheckpointError as error:
        raise UsageError(f"{settings.path}: {error.message}", remedy=error.remedy) from error
    return weights_of(checkpoint, part, shown=settings.path)


def weights_of(checkpoint: Checkpoint, part: str, *, shown: str) -> Weights:
    """The weights (`model`) of a verified checkpoint, or their average (`ema`); in pieces or not."""
    found = checkpoint.stored(part)
    if not isinstance(found, dict):
        raise UsageError(f"{shown}: the run kept no average of its weights", remedy="use `weights: model`")
    stored = {name: item for name, item in found.items() if isinstance(item, StoredPieces)}

    def read(name: str) -> Tensor:
        import torch

        whole = torch.empty(stored[name].shape, dtype=stored[name].dtype)
        read_pieces(checkpoint.path, {name: stored[name]}, {name: whole})
        return whole

    files = checkpoint.manifest["files"]
    own = {tensor_file(part), *(chunk.file for item in stored.values() for chunk in item.chunks)} & files.keys()
    averaged = ", averaged weights" if part == "ema" else ""
    return Weights(
        f"{shown} (checkpoint of step {checkpoint.step}{averaged})",
        {name: Stored(tuple(item.shape), item.dtype) for name, item in stored.items()},
        read,
        tuple(checkpoint.path / name for name in sorted(own)),
        {"step": checkpoint.step, "weights": part},
        {name: files[name]["sha256"] for name in sorted(own)},
    )


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)
