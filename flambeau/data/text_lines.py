"""Text files: a line a sample, or a file a sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval
from torch.utils.data import Dataset

from flambeau.data.file_readers import read_text
from flambeau.data.module import DataModule
from flambeau.data.splits import split
from flambeau.data.table_files import find_table_files
from flambeau.errors import UsageError
from flambeau.registry import register


@register.data("text_lines")
class TextLines(DataModule):
    """Text, a line or a file a sample; it stays on the host, as a model's own tokenizer takes it.

    Args:
        train: the training file, several, or a glob (`texts/*/*.txt`).
        val: files of the validation samples; without them, a part of the training samples is held out if
            `val_fraction` is above 0.
        test: likewise for the test.
        unit: `line` or `file`: what a sample is.
        labels: `none`; `folder`: the folder that the file lies in is the class; `file`: its name without the ending;
            `first` or `last`: what stands before the first, or behind the last, `separator` of the line.
        separator: what stands between the label and the text of a line.
        encoding: how the files are written.
        as_bytes: give the text as UTF-8 bytes, in place of text.
        keep_empty: keep lines with nothing but white space.
        val_fraction: share of the training samples for validation, if `val` is not given; of each class its share.
        test_fraction: likewise for the test.
        seed: what the split is a function of.

    Targets are int64 class indices. All text is held in memory.
    """

    num_classes: int
    class_names: list[str]

    def __init__(
        self,
        train: str | Sequence[str],
        val: str | Sequence[str] | None = None,
        test: str | Sequence[str] | None = None,
        unit: Literal["line", "file"] = "line",
        labels: Literal["none", "folder", "file", "first", "last"] = "none",
        separator: str = "\t",
        encoding: str = "utf-8",
        as_bytes: bool = False,
        keep_empty: bool = False,
        val_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.1,
        test_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
        seed: int = 0,
    ) -> None:
        if labels in ("first", "last") and (unit == "file" or not separator):
            raise UsageError(f"data.labels: {labels} is the label of a line, which needs a separator")
        try:
            "".encode(encoding)
        except LookupError as error:
            raise UsageError(f"data.encoding: there is no encoding '{encoding}'") from error

        def samples(given: str | Sequence[str], part: str) -> list[tuple[str, str]]:
            found = [
                sample
                for path in find_table_files(given, f"data.{part}")
                for sample in _samples(path, unit, labels, separator, encoding, keep_empty=keep_empty)
            ]
            if not found:
                raise UsageError(f"data.{part}: the files hold no text")
            return found

        parts = {"train": samples(train, "train")}
        parts |= {part: samples(given, part) for part, given in (("val", val), ("test", test)) if given is not None}
        classes: dict[str, int] = {}
        if labels != "none":
            self.class_names = sorted({label for label, _ in parts["train"]})
            self.num_classes = len(self.class_names)
            classes = {name: code for code, name in enumerate(self.class_names)}
        sets = {part: _dataset(found, classes, part, as_bytes=as_bytes) for part, found in parts.items()}
        whole = sets["train"]
        cut = (0.0 if "val" in sets else val_fraction, 0.0 if "test" in sets else test_fraction)
        train_rows, val_rows, test_rows = split(len(whole), cut, seed, labels=whole.targets)
        self.train = whole.subset(train_rows)
        self.val = sets.get("val") or (whole.subset(val_rows) if len(val_rows) else None)
        self.test = sets.get("test") or (whole.subset(test_rows) if len(test_rows) else None)


class TextDataset(Dataset[tuple[Any, ...]]):
    """Texts, with a class each or without: a sample is `(text, class)` or `(text,)`."""

    def __init__(self, texts: Sequence[str | bytes], targets: Sequence[int] | None) -> None:
        self.texts = list(texts)
        self.targets = None if targets is None else list(targets)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return (self.texts[index],) if self.targets is None else (self.texts[index], self.targets[index])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, ...]]:
        return [self[index] for index in indices]

    def subset(self, indices: Any) -> TextDataset:
        """The samples at `indices` as a dataset of their own."""
        chosen = [int(index) for index in indices]
        targets = None if self.targets is None else [self.targets[index] for index in chosen]
        return TextDataset([self.texts[index] for index in chosen], targets)


def _samples(
    path: Path, unit: str, labels: str, separator: str, encoding: str, *, keep_empty: bool
) -> list[tuple[str, str]]:
    """Label and text of each sample of a file."""
    text = read_text(path, encoding).removeprefix("\ufeff")
    label = {"folder": path.resolve().parent.name, "file": path.stem}.get(labels, "")
    if unit == "file":
        return [(label, text)]
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
    found = []
    for number, line in enumerate(lines, start=1):
        if not keep_empty and not line.strip():
            continue
        if labels in ("first", "last"):
            before, between, after = line.partition(separator) if labels == "first" else line.rpartition(separator)
            if not between:
                raise UsageError(f"{path}:{number}: there is no {separator!r} between a label and the text")
            label, line = (before.strip(), after) if labels == "first" else (after.strip(), before)
        found.append((label, line))
    return found


def _dataset(samples: list[tuple[str, str]], classes: dict[str, int], part: str, *, as_bytes: bool) -> TextDataset:
    unknown = sorted({label for label, _ in samples} - classes.keys()) if classes else []
    if unknown:
        raise UsageError(f"data.{part}: there are classes that no training sample has: {', '.join(unknown[:5])}")
    texts = [text.encode() if as_bytes else text for _, text in samples]
    return TextDataset(texts, [classes[label] for label, _ in samples] if classes else None)
