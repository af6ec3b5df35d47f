"""Text as windows of tokens: what is in which part, and what is read into memory."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flambeau.config.sections import LoaderSettings
from flambeau.data import Batch, Feeder
from flambeau.data.corpus import standard_library_docstrings
from flambeau.data.text import Text, TextWindows
from flambeau.data.vocabulary import Bytes, Characters
from flambeau.errors import UsageError

TEXT = "".join(f"line {number} of a text\n" for number in range(200))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with one text in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(TEXT)
    return tmp_path


def tokens_of(windows: TextWindows | None) -> list[bytes]:
    """Each window with the token after it."""
    assert windows is not None
    return [
        bytes([*inputs.tolist(), int(targets[-1])]) for inputs, targets in (windows[i] for i in range(len(windows)))
    ]


def test_a_target_is_the_window_one_token_later() -> None:
    """Of the same part; batches have both as int64."""
    data = Text("a.txt", block_size=10)
    inputs, targets = data.train[3]
    assert bytes(inputs.tolist()) == TEXT.encode()[30:40]
    assert bytes(targets.tolist()) == TEXT.encode()[31:41]
    feeder = Feeder(data.train, settings=LoaderSettings(), batch_size=4, seed=0, batch_transform=data.batch_transform)
    batch = next(feeder.batches())
    assert isinstance(batch, Batch)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    assert bytes(batch.inputs[0].tolist()) == TEXT.encode()[10 * batch.ids[0] :][:10]


@pytest.mark.parametrize("stride", [None, 1, 7])
def test_the_parts_lie_one_after_the_other_and_share_nothing(folder: Path, stride: int | None) -> None:
    """Each window is in its part's own stretch of the text, whatever the stride of training."""
    text = np.random.default_rng(0).integers(0, 256, 2000, dtype=np.uint8).tobytes()
    (folder / "random.bin").write_bytes(text)
    data = Text("random.bin", block_size=16, stride=stride, val_fraction=0.2, test_fraction=0.1)
    for windows, start, stop in ((data.train, 0, 1400), (data.val, 1400, 1800), (data.test, 1800, 2000)):
        part = text[start:stop]
        assert all(window in part for window in tokens_of(windows))
    assert len(data.train) == (1400 - 17) // (stride or 16) + 1


def test_without_a_stride_an_epoch_predicts_each_token_once() -> None:
    """But for the first, and less than a window at the end."""
    data = Text("a.txt", block_size=16)
    targets = b"".join(window[1:] for window in tokens_of(data.train))
    assert TEXT.encode()[1:].startswith(targets)
    assert len(targets) > 0.9 * len(TEXT) - 17


def test_one_file_of_bytes_is_mapped_and_not_copied(folder: Path) -> None:
    """A sparse file of 64 GB has its windows at once: only those that are looked at are read."""
    with (folder / "large.txt").open("wb") as file:
        file.truncate(64 << 30)
        file.seek(640)
        file.write(b"here")
    data = Text("large.txt", block_size=64)
    assert bytes(data.train[10][0][:4].tolist()) == b"here"
    assert len(data.train) > 900_000_000


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says what is mapped")
@pytest.mark.parametrize("vocabulary", ["bytes", "characters"])
def test_several_files_are_mapped_from_one_that_has_no_name(folder: Path, vocabulary: str) -> None:
    """Nothing is left in the temporary folder, and the tokens are the files' in the order of their paths."""
    (folder / "b").mkdir()
    (folder / "b" / "0.txt").write_text("zzz" * 1000)
    data = Text(["**/*.txt", "a.txt"], vocabulary=vocabulary, block_size=8, test_fraction=0)  # type: ignore[arg-type]
    tokens = data.train._cut[0]
    assert tokens.dtype == torch.uint8
    mapped = [line for line in Path("/proc/self/maps").read_text().split("\n") if line.endswith("(deleted)")]
    ranges = [[int(edge, 16) for edge in line.split()[0].split("-")] for line in mapped]
    assert any(start <= tokens.data_ptr() < stop for start, stop in ranges)
    assert data.decode(tokens[:40].long()) == TEXT[:40]
    assert data.decode(tokens[-40:].long()) == "z" * 40


class TestCharacters:
    def test_the_vocabulary_is_that_of_the_training_part(self, folder: Path) -> None:
        """What validation has besides is the unknown token, and costs nothing in the vocabulary."""
        (folder / "c.txt").write_text("abcé" * 100 + "xyz" * 16)
        data = Text("c.txt", vocabulary="characters", block_size=4, val_fraction=0.12, test_fraction=0)
        assert data.vocab_size == 5
        assert data.token_bytes == (3, 1, 1, 1, 2)
        assert data.test is None
        assert data.val is not None
        assert data.val[5][0].tolist() == [0, 0, 0, 0]
        assert data.decode(data.encode("cab é?")) == "cab\N{REPLACEMENT CHARACTER}é\N{REPLACEMENT CHARACTER}"

    @given(st.text(max_size=50), st.text(max_size=50))
    def test_known_characters_come_back_and_others_are_one_token(self, known: str, text: str) -> None:
        vocabulary = Characters(known)
        tokens = vocabulary.encode(text)
        assert len(tokens) == len(text)
        assert all(0 <= token < vocabulary.size for token in tokens.tolist())
        expected = "".join(c if c in known else "\N{REPLACEMENT CHARACTER}" for c in text)
        assert vocabulary.decode(tokens) == expected

    def test_many_characters_take_more_bytes_a_token(self, folder: Path) -> None:
        """As many as needed: 300 characters do not fit into one."""
        (folder / "many.txt").write_text("".join(map(chr, range(0x4E00, 0x4E00 + 300))) * 3)
        data = Text("many.txt", vocabulary="characters", block_size=4)
        assert data.train[0][0].dtype == torch.int16
        assert data.decode(data.train[0][0]) == "\u4e00\u4e01\u4e02\u4e03"

    def test_a_file_that_is_no_text_is_named(self, folder: Path) -> None:
        (folder / "broken.txt").write_bytes(b"\xff\xfe" * 100)
        with pytest.raises(UsageError, match=r"(?s)broken.txt is no text in UTF-8.*data.vocabulary=bytes"):
            Text("broken.txt", vocabulary="characters")


@settings(max_examples=50)
@given(st.text(max_size=60))
def test_bytes_have_tokens_for_every_text(text: str) -> None:
    """And give it back."""
    vocabulary = Bytes()
    assert vocabulary.encode(text).tolist() == list(text.encode())
    assert vocabulary.decode(vocabulary.encode(text)) == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"files": "*.md"}, r"'\*.md' matches no file"),
        ({"files": "a.txt", "block_size": 5000}, "training part of the text has .* not one window of 5000"),
        ({"files": "a.txt", "val_fraction": 0.001}, "validation part of the text has 4 tokens"),
        ({"files": "a.txt", "val_fraction": 0.5, "test_fraction": 0.5}, "leave no training text"),
    ],
)
def test_what_cannot_be_cut_into_windows_is_refused(arguments: dict[str, object], message: str) -> None:
    """Before any work, with the setting's name."""
    with pytest.raises(UsageError, match=f"(?s){message}"):
        Text(**arguments)  # type: ignore[arg-type]


def test_a_subset_knows_its_vocabulary() -> None:
    """What writes text looks for it at the data."""
    data = Text("a.txt", block_size=10)
    part = data.train.subset([4, 2])
    assert part.vocabulary is data.vocabulary
    assert torch.equal(part[0][0], data.train[4][0])
    assert torch.equal(part.subset([1])[0][0], data.train[2][0])


class TestStandardLibrary:
    def test_its_text_is_there_in_the_order_of_the_modules(self) -> None:
        """The docstrings, of this Python; no module is imported for them."""
        before = set(sys.modules)
        text = standard_library_docstrings()
        assert set(sys.modules) == before
        assert len(text) > 500_000
        assert "def copytree(src, dst" in text
        assert text.index("import argparse\n") < text.index("import shutil\n") < text.index("import textwrap\n")

    def test_a_python_without_its_source_says_so(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(folder / "python.zip")})
        with pytest.raises(UsageError, match=r"(?s)no source of Python's standard library.*data.files"):
            standard_library_docstrings.__wrapped__()
