"""Folders of files of any kind, by pattern."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Interval
from torch.utils.data import Dataset

from flambeau.data.file_readers import Reader, reader_of
from flambeau.data.listing import compile_pattern, list_files
from flambeau.data.module import DataModule
from flambeau.data.parts import PARTS
from flambeau.data.splits import split
from flambeau.data.transforms import NormalizeBytes
from flambeau.errors import UsageError
from flambeau.registry import register


@register.data("files")
class Files(DataModule):
    """Files below a folder, one a sample: images, arrays, texts, or what a function of one's own reads.

    Args:
        root: the folder.
        pattern: which files, a glob on the path relative to `root`, with forward slashes on every system: `*` stays
            within a folder's name, `**` stands for any folders, `{jpg,png}` for one of these.
        regex: in place of `pattern`, a regular expression that the whole relative path must match.
        labels: `folder`: the first folder of the path (of what follows the part, with `folders`) is the class; `regex`:
            what the group `(?P<label>...)` of `regex` matches; `none`: the samples have no targets.
        reader: `image` (RGB), `grey`, `npy`, `text`, `bytes`, or the import path of a function of a `Path`.
        image_size: height and width that images are resized to; default: as they are.
        mean: of each channel of images, values in 0..1; default: 0.5.
        std: standard deviation of each channel, likewise.
        folders: the parts are the folders `train/`, `val/` and `test/` of `root`.
        lists: the parts are text files of relative paths, one a line: `{train: train.txt, val: val.txt}`.
        val_fraction: share of the training files that is held out for validation, where there is no part for it; of
            each class its share, a function of the seed.
        test_fraction: likewise for the test.
        refresh: list the folder anew, not looking at what is remembered of it.
        seed: what the split is a function of.

    Images reach the device as bytes, uint8 (C, H, W), and are normalised there; targets are int64 class indices.
    """

    num_classes: int
    class_names: list[str]
    in_channels: int
    image_size: int
    input_shape: tuple[int, ...]
    num_features: int

    def __init__(
        self,
        root: Path,
        pattern: str = "**/*",
        regex: str | None = None,
        labels: Literal["folder", "regex", "none"] = "folder",
        reader: str = "image",
        image_size: Annotated[int, Ge(1)] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[Annotated[float, Gt(0)]] | None = None,
        folders: bool = False,
        lists: Mapping[str, Path] | None = None,
        val_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.1,
        test_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
        refresh: bool = False,
        seed: int = 0,
    ) -> None:
        root = Path(root)
        wanted = compile_pattern(pattern if regex is None else regex, regex=regex is not None)
        _check_ways(wanted, regex, labels, folders, lists)
        read = reader_of(reader, image_size)
        files = list_files(root, wanted, refresh=refresh)
        if not files:
            what = f"the pattern '{pattern}'" if regex is None else f"the regular expression '{regex}'"
            raise UsageError(
                f"no file below {root} matches {what}", remedy="it is compared with the path relative to the root"
            )
        parts = _parts(root, files, folders, lists)
        named = {
            part: [_label(path, wanted, labels, part if folders else None) for path in parts[part]] for part in parts
        }
        classes: dict[str, int] = {}
        if labels != "none":
            self.class_names = sorted(set(named["train"]))
            self.num_classes = len(self.class_names)
            classes = {name: index for index, name in enumerate(self.class_names)}
        sets = {}
        for part, paths in parts.items():
            unknown = sorted(set(named[part]) - classes.keys()) if classes else []
            if unknown:
                raise UsageError(f"{root}: the {part} files have classes that no training file has: {unknown[:5]}")
            targets = [classes[name] for name in named[part]] if classes else None
            sets[part] = FileDataset(root, paths, read, targets)
        cut = [0.0 if part in sets else share for part, share in (("val", val_fraction), ("test", test_fraction))]
        whole = sets["train"]
        train, val, test = split(len(whole), cut, seed, labels=whole.targets)
        self.train = whole.subset(train)
        self.val = sets.get("val") or (whole.subset(val) if len(val) else None)
        self.test = sets.get("test") or (whole.subset(test) if len(test) else None)
        if reader in ("image", "grey"):
            self.in_channels = 3 if reader == "image" else 1
            middle = [0.5] * self.in_channels
            self.batch_transform = NormalizeBytes(
                _of_channels(mean or middle, "mean", self.in_channels),
                _of_channels(std or middle, "std", self.in_channels),
            )
            if image_size is not None:
                self.image_size = image_size
                self.input_shape = (self.in_channels, image_size, image_size)
                self.num_features = self.in_channels * image_size**2


class FileDataset(Dataset[tuple[Any, ...]]):
    """A sample a file: `(input, target)`, or `(input,)` without targets.

    Args:
        root: the folder.
        paths: relative paths.
        read: makes the input of a path.
        targets: class indices, one a path.

    Attributes:
        sources: where each sample comes from, by which parts are kept apart.
    """

    def __init__(self, root: Path, paths: Sequence[str], read: Reader, targets: Sequence[int] | None) -> None:
        self.root = root
        self.paths = list(paths)
        self.read = read
        self.targets = None if targets is None else list(targets)

    @property
    def sources(self) -> list[str]:
        return [f"{self.root}/{path}" for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        read = self.read(self.root / self.paths[index])
        return (read,) if self.targets is None else (read, self.targets[index])

    def subset(self, indices: Any) -> FileDataset:
        """The samples at `indices` as a dataset of their own."""
        chosen = [int(index) for index in indices]
        targets = None if self.targets is None else [self.targets[index] for index in chosen]
        return FileDataset(self.root, [self.paths[index] for index in chosen], self.read, targets)

    def fingerprint(self) -> str:
        """All paths and classes; of some files, up to 256, the size, and the first and last bytes."""
        digest = hashlib.blake2b(digest_size=16)
        for path, target in zip(self.paths, self.targets or [-1] * len(self), strict=True):
            digest.update(f"{path}\0{target}\0".encode("utf-8", "surrogateescape"))
        for index in np.unique(np.linspace(0, len(self) - 1, min(len(self), 256)).round().astype(int)).tolist():
            with (self.root / self.paths[index]).open("rb") as file:
                size = file.seek(0, 2)
                file.seek(0)
                content = file.read(4096)
                file.seek(max(0, size - 4096))
                digest.update(f"{size};".encode() + content + file.read(4096))
        return digest.hexdigest()


def _check_ways(
    wanted: re.Pattern[str], regex: str | None, labels: str, folders: bool, lists: Mapping[str, Path] | None
) -> None:
    if labels == "regex" and "label" not in wanted.groupindex:
        raise UsageError(
            "data.labels: regex needs a group (?P<label>...) in data.regex",
            remedy="for instance regex: '(?P<label>[^_/]+)_.*\\.png'" if regex is None else None,
        )
    if folders and lists is not None:
        raise UsageError("data: folders and lists both say what the parts are", remedy="give one of them")
    if unknown := [part for part in lists or () if part not in PARTS]:
        raise UsageError(f"data.lists: there is no part '{unknown[0]}'", remedy="the parts are train, val and test")
    if lists is not None and "train" not in lists:
        raise UsageError("data.lists has no entry 'train'")


def _parts(root: Path, files: list[str], folders: bool, lists: Mapping[str, Path] | None) -> dict[str, list[str]]:
    """The relative paths of each part that there is."""
    if lists is not None:
        return {part: _listed(Path(lists[part]), root, set(files)) for part in PARTS if part in lists}
    if not folders:
        return {"train": files}
    parts = {part: [path for path in files if path.startswith(f"{part}/")] for part in PARTS}
    if not parts["train"]:
        raise UsageError(f"{root} has no files in a folder train/", remedy="set data.folders to false")
    return {part: paths for part, paths in parts.items() if paths}


def _listed(file: Path, root: Path, files: set[str]) -> list[str]:
    if not file.is_file():
        raise UsageError(f"there is no file {file}")
    lines = file.read_text(encoding="utf-8").splitlines()
    paths = [line.strip() for line in lines if line.strip()]
    for number, line in enumerate(lines, start=1):
        if line.strip() and line.strip() not in files:
            raise UsageError(f"{file}:{number}: no file '{line.strip()}' below {root} matches the pattern")
    if len(set(paths)) != len(paths) or not paths:
        raise UsageError(f"{file} names {'a file twice' if paths else 'no file'}")
    return sorted(paths)


def _label(path: str, wanted: re.Pattern[str], labels: str, part: str | None) -> str:
    if labels == "none":
        return ""
    if labels == "regex":
        found = wanted.fullmatch(path)
        assert found is not None
        if found["label"] is None:
            raise UsageError(f"data.regex: the group `label` matches nothing in '{path}'")
        return str(found["label"])
    folders = (path.removeprefix(f"{part}/") if part else path).split("/")[:-1]
    if not folders:
        raise UsageError(
            f"'{path}' lies in no folder that could be its class",
            remedy="move it, narrow data.pattern, or set data.labels to none or regex",
        )
    return folders[0]


def _of_channels(values: Sequence[float], name: str, channels: int) -> Sequence[float]:
    if len(values) != channels:
        raise UsageError(f"data.{name}: {len(values)} numbers, and the images have {channels} channels")
    return values
