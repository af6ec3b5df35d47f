"""Datasets of the Hugging Face library: on disk, or by name from its hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Interval
from torch.utils.data import Dataset, IterableDataset

from flambeau.data.module import DataModule
from flambeau.data.splits import split
from flambeau.errors import MissingExtraError, UsageError
from flambeau.registry import register

_FORMATS = ("json", "csv", "parquet", "arrow", "text")


@register.data("huggingface")
class HuggingFace(DataModule):
    """A dataset of the library `datasets`: files here, what it saved to disk, or a name on its hub.

    Args:
        source: a folder that `save_to_disk` wrote; a folder of data files; the format of `files` (`json`, `csv`,
            `parquet`, `arrow`, `text`); or a name on the hub (`stanfordnlp/imdb`), fetched on the first use.
        inputs: the column that the model gets, or several: the input is then a dict.
        targets: the column to predict, or several; null if there is none.
        config: which configuration of the dataset, where it has several.
        files: data files by split, `{train: a.json, validation: b.json}`, or those of the training data alone.
        train: the split of the training samples.
        val: the split of the validation samples; without one, a part of the training samples is held out if
            `val_fraction` is above 0. The test split is never taken for it.
        test: likewise for the test.
        streaming: read in order, without holding or indexing the data; `val` and `test` are then splits or absent.
        shuffle_buffer: in streaming, samples among which the next is chosen at random in training; 0 keeps the order.
        revision: which version on the hub: a commit or a tag.
        cache: folder of what is fetched and converted; default: the library's own.
        val_fraction: share of the training samples for validation, if `val` is not given; of each class its share.
        test_fraction: likewise for the test.
        seed: what the split and the streaming order are functions of.

    Numbers and lists of numbers become tensors, images uint8 (C, H, W), text stays text. Classes are int64: those that
    the dataset names, or the texts of the target column in the training samples, sorted. Code that comes with a dataset
    is never run.
    """

    num_classes: int
    class_names: list[str]

    def __init__(
        self,
        source: str,
        inputs: str | Sequence[str],
        targets: str | Sequence[str] | None = None,
        config: str | None = None,
        files: str | Sequence[str] | Mapping[str, str] | None = None,
        train: str = "train",
        val: str | None = None,
        test: str | None = None,
        streaming: bool = False,
        shuffle_buffer: Annotated[int, Ge(0)] = 0,
        revision: str | None = None,
        cache: Path | None = None,
        val_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.1,
        test_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
        seed: int = 0,
    ) -> None:
        library = datasets_library()
        if shuffle_buffer and not streaming:
            raise UsageError("data.shuffle_buffer is read in streaming alone", remedy="leave it out: all are shuffled")
        splits = _load(library, source, config, files, revision, cache, streaming=streaming)
        names = {"train": train, "val": val, "test": test}
        parts = {part: _split_of(splits, name, part, source) for part, name in names.items() if name is not None}
        columns = _Columns(inputs, targets, parts["train"], source)
        if columns.class_names is not None:
            self.class_names = columns.class_names
            self.num_classes = len(self.class_names)
        if streaming:
            if shuffle_buffer:
                shuffled = parts["train"].shuffle(seed=seed, buffer_size=shuffle_buffer)
                self.train = HuggingFaceStream(shuffled, columns)
            else:
                self.train = ResumableStream(parts["train"], columns)
            self.val, self.test = (
                HuggingFaceStream(parts[part], columns) if part in parts else None for part in ("val", "test")
            )
            return
        sets = {part: HuggingFaceRows(data, columns) for part, data in parts.items()}
        whole = sets["train"]
        cut = (0.0 if "val" in sets else val_fraction, 0.0 if "test" in sets else test_fraction)
        train_rows, val_rows, test_rows = split(len(whole), cut, seed, labels=whole.targets)
        self.train = whole.subset(train_rows) if len(train_rows) < len(whole) else whole
        self.val = sets.get("val") or (whole.subset(val_rows) if len(val_rows) else None)
        self.test = sets.get("test") or (whole.subset(test_rows) if len(test_rows) else None)


class _Columns:
    """Which columns of a row are a sample's input and target, and what becomes of their values."""

    def __init__(self, inputs: Any, targets: Any, train: Any, source: str) -> None:
        self.inputs, self.targets = inputs, targets
        asked = [*_names(inputs), *_names(targets)]
        has = train.column_names
        for name in asked:
            if has is not None and name not in has:
                near = get_close_matches(name, has, n=1)
                raise UsageError(
                    f"data: {source} has no column '{name}'",
                    remedy=f"did you mean '{near[0]}'?" if near else f"it has {', '.join(has)}",
                )
        self.names = list(dict.fromkeys(asked))
        self.class_names: list[str] | None = None
        self._codes: dict[Any, int] | None = None
        if isinstance(targets, str):
            self._learn_classes(train, targets)

    def _learn_classes(self, train: Any, target: str) -> None:
        feature: Any = (train.features or {}).get(target)
        if hasattr(feature, "names"):
            self.class_names = list(feature.names)
            return
        if getattr(feature, "dtype", None) not in ("string", "large_string"):
            return
        if not hasattr(train, "unique"):
            raise UsageError(
                f"data.targets: '{target}' is text, whose classes are not known before all is read",
                remedy="set data.streaming to false, or give the target as numbers",
            )
        self.class_names = sorted(train.unique(target))
        self._codes = {name: code for code, name in enumerate(self.class_names)}

    def sample(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """A sample of a row."""
        value = _pick(row, self.inputs, _as_data)
        if self.targets is None:
            return (value,)
        return value, _pick(row, self.targets, self._target)

    def codes(self, values: Sequence[Any]) -> list[int]:
        """The class of each value of the target column."""
        return [self._target(value) for value in values]

    def _target(self, value: Any) -> Any:
        if self._codes is None:
            return _as_data(value)
        if value not in self._codes:
            raise UsageError(f"data.targets: no training sample has the class '{value}'")
        return self._codes[value]


class HuggingFaceRows(Dataset[tuple[Any, ...]]):
    """The rows of a map-style dataset of the library, many fetched at once."""

    def __init__(self, data: Any, columns: _Columns) -> None:
        self.data = data.select_columns(columns.names)
        self.columns = columns

    @property
    def targets(self) -> list[int] | None:
        """The class of each row, where the target is one."""
        if self.columns.class_names is None:
            return None
        return self.columns.codes(self.data[self.columns.targets][:])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self.columns.sample(self.data[int(index)])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, ...]]:
        return [self.columns.sample(row) for row in self.data.__getitems__(list(map(int, indices)))]

    def subset(self, indices: Any) -> HuggingFaceRows:
        """The rows at `indices`; nothing is copied."""
        return HuggingFaceRows(self.data.select([int(index) for index in indices]), self.columns)


class HuggingFaceStream(IterableDataset[tuple[Any, ...]]):
    """A streamed dataset of the library. A place in a shuffled one is regained by reading up to it, since the library
    does not keep what is in its buffer."""

    def __init__(self, data: Any, columns: _Columns) -> None:
        self.data = data
        self.columns = columns

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for row in self.data:
            yield self.columns.sample(row)

    def set_epoch(self, epoch: int) -> None:
        self.data.set_epoch(epoch)


class ResumableStream(HuggingFaceStream):
    """One that can go on from where it was."""

    def state_dict(self) -> Any:
        return self.data.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.data.load_state_dict(state)


def datasets_library() -> Any:
    """The library `datasets`, imported when a configuration asks for it.

    Raises:
        UsageError: it is missing, or so old that it would run code that comes with a dataset.
    """
    try:
        library = import_module("datasets")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "datasets":
            raise
        raise MissingExtraError("datasets", "huggingface") from error
    if not hasattr(library, "load_dataset"):
        if getattr(library, "__file__", None) is None:  # a project's folder, which Python takes for a package
            raise MissingExtraError("datasets", "huggingface")
        raise UsageError(
            f"{library.__file__} hides the library of the same name",
            remedy="leave out the __init__.py of the project's folder datasets/, or give the folder another name",
        )
    version = str(getattr(library, "__version__", "0"))
    if int(version.partition(".")[0]) < 4:
        raise UsageError(
            f"datasets {version} can run code that comes with a dataset", remedy="pip install 'flambeau[huggingface]'"
        )
    return library


def _load(
    library: Any,
    source: str,
    config: str | None,
    files: Any,
    revision: str | None,
    cache: Path | None,
    *,
    streaming: bool,
) -> Mapping[str, Any]:
    """The dataset's splits by name."""
    folder = Path(source)
    if source in _FORMATS and files is None:
        raise UsageError(
            f"data.files: which {source} files?", remedy="give one, several, or a mapping of splits to files"
        )
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            found = library.load_from_disk(str(folder))
            if streaming:
                return {name: data.to_iterable_dataset() for name, data in _by_name(found).items()}
            return _by_name(found)
        return _by_name(
            library.load_dataset(
                source,
                name=config,
                data_files=dict(files) if isinstance(files, Mapping) else files,
                revision=revision,
                cache_dir=None if cache is None else str(cache),
                streaming=streaming,
            )
        )
    except Exception as error:
        # The library has no common class of errors: a missing file, a bad row and a hub that cannot be reached.
        where = (
            "" if folder.exists() or source in _FORMATS else ", which is no folder here, could not be had from the hub"
        )
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UsageError(
            f"data.source: {source}{where}: {type(error).__name__}: {reason}",
            remedy="without a network: data.source is a folder that `save_to_disk` wrote, or the format of data.files",
        ) from error


def _by_name(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {"train": found}


def _split_of(splits: Mapping[str, Any], name: str, part: str, source: str) -> Any:
    if name not in splits:
        raise UsageError(f"data.{part}: {source} has no split '{name}'", remedy=f"it has {', '.join(splits)}")
    return splits[name]


def _names(columns: str | Sequence[str] | None) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns or ())


def _pick(row: Mapping[str, Any], columns: Any, convert: Any) -> Any:
    return convert(row[columns]) if isinstance(columns, str) else {name: convert(row[name]) for name in columns}


def _as_data(value: Any) -> Any:
    """A value of a row as a sample has it."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if hasattr(value, "convert") and hasattr(value, "mode"):  # an image of Pillow's
        pixels = torch.from_numpy(np.array(value if value.mode == "L" else value.convert("RGB")))
        return pixels.permute(2, 0, 1).contiguous() if pixels.dim() == 3 else pixels.unsqueeze(0)
    if isinstance(value, list) and value and not isinstance(value[0], str | bytes | Mapping):
        return torch.tensor(value)
    return dict(value) if isinstance(value, Mapping) else value
