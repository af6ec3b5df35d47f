"""Text for language models: windows of tokens, and the same windows one token later."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from annotated_types import Ge, Interval

from flambeau.data.batch import Batch, map_tensors
from flambeau.data.corpus import standard_library_docstrings
from flambeau.data.in_memory import ArrayDataset
from flambeau.data.module import DataModule
from flambeau.data.vocabulary import Bytes, Characters, Vocabulary
from flambeau.errors import UsageError
from flambeau.registry import register

_CHUNK = 1 << 22  # characters or bytes read at a time


class TextWindows(ArrayDataset):
    """Windows of a text: sample i is tokens [i * stride, i * stride + block_size), its target the same one later.

    Nothing is copied: windows are views of the tokens, which may lie in a file that is mapped into memory.

    Args:
        tokens: (T,), of any integer dtype; samples have the same.
        block_size: tokens of a window.
        stride: tokens from one window's beginning to the next.
        vocabulary: what the tokens stand for.
    """

    def __init__(
        self, tokens: torch.Tensor, block_size: int, stride: int, vocabulary: Vocabulary, *, rows: Any = None
    ) -> None:
        windows = tokens.unfold(0, block_size + 1, stride)
        super().__init__(windows[:, :-1], windows[:, 1:], rows=rows)
        self.vocabulary = vocabulary
        self._cut = (tokens, block_size, stride)

    def subset(self, indices: Any) -> TextWindows:
        """The windows at `indices`, of the same text."""
        return TextWindows(*self._cut, self.vocabulary, rows=super().subset(indices).rows)


@register.data("text")
class Text(DataModule):
    """Text as tokens, cut into windows, for models that predict the next token.

    Args:
        files: text files of one's own: a pattern (`texts/**/*.txt`) or several, relative to the working directory; in
            the order of their paths. null: the docstrings of Python's standard library, about 1 MB that is there
            without a download; it depends on the version of Python.
        vocabulary: `bytes`: 256 tokens, any file. `characters`: those of the training part, of files in UTF-8; others
            become one unknown token.
        block_size: tokens of a window.
        stride: tokens from the beginning of a training window to that of the next; null: `block_size`, so that an epoch
            has each token once. Windows of the other parts never overlap.
        val_fraction: share of the text for validation: one part after the training part, so that they share no window.
        test_fraction: likewise for the test, at the end of the text.

    A sample is a window (block_size,) and, as its target, the same window one token later; both int64 on the device.
    Less than a window at the end of a part is left out. Tokens lie in a file that is mapped into memory, the text's own
    (one file, bytes) or else a temporary one, so a text may be larger than memory.
    """

    vocab_size: int
    block_size: int
    token_bytes: tuple[int, ...] | None
    """Bytes of each token of the vocabulary; None: each is one byte."""

    def __init__(
        self,
        files: str | Sequence[str] | None = None,
        vocabulary: Literal["bytes", "characters"] = "bytes",
        block_size: Annotated[int, Ge(1)] = 128,
        stride: Annotated[int, Ge(1)] | None = None,
        val_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.05,
        test_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.05,
    ) -> None:
        if val_fraction + test_fraction >= 1:
            raise UsageError(
                f"data: val_fraction {val_fraction} and test_fraction {test_fraction} leave no training text"
            )
        paths = None if files is None else find_files([files] if isinstance(files, str) else files)
        fractions = (val_fraction, test_fraction)
        if vocabulary == "bytes":
            self.vocabulary: Vocabulary = Bytes()
            tokens = _map(paths[0]) if paths and len(paths) == 1 else _written(_bytes_of(paths), np.uint8)
            cuts = _cuts(len(tokens), fractions)
        else:
            cuts = _cuts(sum(map(len, _characters_of(paths))), fractions)
            characters = Characters(_known(_characters_of(paths), cuts[0]))
            tokens = _written(map(characters.encode_array, _characters_of(paths)), characters.dtype)
            self.vocabulary = characters
        self.vocab_size = self.vocabulary.size
        self.token_bytes = self.vocabulary.token_bytes
        self.block_size = block_size
        train, val, test = tokens[: cuts[0]], tokens[cuts[0] : cuts[1]], tokens[cuts[1] :]
        self.train = self._windows("training", train, stride or block_size)
        self.val = self._windows("validation", val, block_size) if val_fraction else None
        self.test = self._windows("test", test, block_size) if test_fraction else None

    def _windows(self, part: str, tokens: torch.Tensor, stride: int) -> TextWindows:
        if len(tokens) <= self.block_size:
            raise UsageError(
                f"data: the {part} part of the text has {len(tokens)} tokens, which is not one window of "
                f"{self.block_size} and the token after it",
                remedy="give more text, a smaller data.block_size, or other fractions",
            )
        return TextWindows(tokens, self.block_size, stride, self.vocabulary)

    def batch_transform(self, batch: Batch) -> Batch:
        """Tokens as int64, which embeddings and losses take: on the device, since files hold 1 to 4 bytes a token."""
        widen = torch.Tensor.long
        return batch.replace(inputs=map_tensors(widen, batch.inputs), targets=map_tensors(widen, batch.targets))

    def encode(self, text: str) -> torch.Tensor:
        """Tokens (T,) of a text, int64."""
        return self.vocabulary.encode(text)

    def decode(self, tokens: torch.Tensor | Sequence[int]) -> str:
        """The text of tokens (T,)."""
        return self.vocabulary.decode(tokens)


def find_files(patterns: Sequence[str]) -> list[Path]:
    """The files that patterns match, each once, in the order of their paths.

    Raises:
        UsageError: a pattern matches none.
    """
    found: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern)
        root = Path(path.anchor)
        matched = {match for match in root.glob(str(path.relative_to(root))) if match.is_file()} if pattern else set()
        if not matched:
            raise UsageError(
                f"data.files: '{pattern}' matches no file",
                remedy=f"it was looked for in {Path(path.anchor or '.').resolve()}",
            )
        found |= matched
    return sorted(found, key=lambda path: path.parts)


def _cuts(length: int, fractions: tuple[float, float]) -> tuple[int, int]:
    """Where the validation and the test part begin."""
    test = length - round(length * fractions[1])
    return test - round(length * fractions[0]), test


def _bytes_of(paths: Sequence[Path] | None) -> Iterator[npt.NDArray[np.uint8]]:
    """The text in pieces, as bytes."""
    if paths is None:
        yield np.frombuffer(standard_library_docstrings().encode(), dtype=np.uint8)
        return
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(_CHUNK):
                yield np.frombuffer(piece, dtype=np.uint8)


def _characters_of(paths: Sequence[Path] | None) -> Iterator[str]:
    """The text in pieces, as characters; ends of lines as they are."""
    if paths is None:
        yield standard_library_docstrings()
        return
    for path in paths:
        try:
            with path.open(encoding="utf-8", newline="") as file:
                while piece := file.read(_CHUNK):
                    yield piece
        except UnicodeDecodeError as error:
            raise UsageError(
                f"data.files: {path} is no text in UTF-8: {error.reason}", remedy="use data.vocabulary=bytes"
            ) from error


def _known(pieces: Iterator[str], length: int) -> str:
    """The characters among the first `length`."""
    known: set[str] = set()
    for piece in pieces:
        known |= set(piece[:length])
        length -= len(piece)
        if length <= 0:
            break
    return "".join(known)


def _map(path: Path) -> torch.Tensor:
    """The bytes of a file, mapped into memory: what is not used is not read."""
    with path.open("rb") as file:
        return _mapped(file, np.uint8) if path.stat().st_size else torch.empty(0, dtype=torch.uint8)


def _written(pieces: Iterator[npt.NDArray[Any]], dtype: npt.DTypeLike) -> torch.Tensor:
    """Tokens in a temporary file without a name, mapped into memory; the file goes when the tensor does."""
    with tempfile.TemporaryFile() as file:
        for piece in pieces:
            file.write(piece.astype(dtype).tobytes())
        if not file.tell():
            return torch.from_numpy(np.empty(0, dtype=dtype))
        file.flush()
        return _mapped(file, dtype)


def _mapped(file: IO[bytes], dtype: npt.DTypeLike) -> torch.Tensor:
    """The content of an open file, for reading: a mapping that could be written to would have to fit into memory."""
    array = np.memmap(file, dtype=dtype, mode="r")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)
