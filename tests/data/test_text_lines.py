"""Text as data: lines and files, with classes or without, in an encoding that is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flambeau.data import EvalFeeder
from flambeau.data.fingerprint import fingerprint
from flambeau.data.text_lines import TextLines
from flambeau.errors import UsageError


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def texts(dataset: Any) -> list[Any]:
    return [] if dataset is None else [dataset[index][0] for index in range(len(dataset))]


def test_a_line_is_a_sample(tmp_path: Path) -> None:
    """Empty ones are left out unless they are wanted; white space within stays, the line's end does not."""
    file = write(tmp_path / "a.txt", "\ufeffone\n\n two \r\n\t\nthrée")
    assert texts(TextLines(file, val_fraction=0).train) == ["one", " two ", "thrée"]
    assert texts(TextLines(file, val_fraction=0, keep_empty=True).train) == ["one", "", " two ", "\t", "thrée"]
    raw = TextLines(file, val_fraction=0, as_bytes=True).train
    assert texts(raw)[2] == "thrée".encode()
    batch = next(EvalFeeder(raw, batch_size=3).batches())
    assert batch.inputs == texts(raw) and batch.targets is None


def test_a_file_is_a_sample(tmp_path: Path) -> None:
    """Whole, with its line ends; its folder can be its class."""
    for name in ("neg", "pos"):
        for index in range(5):
            write(tmp_path / name / f"{index}.txt", f"{name}\n{index}\n")
    data = TextLines(str(tmp_path / "*" / "*.txt"), unit="file", labels="folder", val_fraction=0.2, test_fraction=0.2)
    assert data.class_names == ["neg", "pos"] and data.num_classes == 2
    assert [len(part) for part in (data.train, data.val, data.test)] == [6, 2, 2]
    assert sorted(texts(data.train) + texts(data.val) + texts(data.test)) == sorted(
        f"{name}\n{index}\n" for name in ("neg", "pos") for index in range(5)
    )
    for part in (data.train, data.val, data.test):
        assert [text.split("\n")[0] for text in texts(part)] == [data.class_names[target] for target in part.targets]
        assert sum(part.targets) * 2 == len(part)


def test_a_line_can_hold_its_label(tmp_path: Path) -> None:
    """Before the first separator or behind the last; a line without one is named."""
    first = TextLines(write(tmp_path / "a.txt", "b\tx\ty\na\tz\n"), labels="first", val_fraction=0)
    assert texts(first.train) == ["x\ty", "z"] and first.train.targets == [1, 0]
    last = TextLines(write(tmp_path / "b.txt", "x,y,b\nz,a\n"), labels="last", separator=",", val_fraction=0)
    assert texts(last.train) == ["x,y", "z"] and last.class_names == ["a", "b"]
    with pytest.raises(UsageError, match=r"a.txt:2: there is no '\\t'"):
        TextLines(write(tmp_path / "a.txt", "b\tx\nplain\n"), labels="first")


def test_a_file_can_be_a_class(tmp_path: Path) -> None:
    """By its name without the ending; a class that training does not have is an error."""
    train = [write(tmp_path / f"{name}.txt", "1\n2\n") for name in ("de", "fr")]
    data = TextLines(train, labels="file", val_fraction=0)
    assert data.class_names == ["de", "fr"] and data.train.targets == [0, 0, 1, 1]
    with pytest.raises(UsageError, match=r"data.val: there are classes that no training sample has: it"):
        TextLines(train, val=write(tmp_path / "it.txt", "3\n"), labels="file")


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    """With the line and the byte; said rightly, it is read."""
    file = write(tmp_path / "a.txt", "eins\nzwölf\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"a.txt:2: byte 7 is not text in utf-8\n.*data.encoding"):
        TextLines(file)
    assert texts(TextLines(file, encoding="latin-1", val_fraction=0).train) == ["eins", "zwölf"]
    with pytest.raises(UsageError, match="no encoding 'latin-one'"):
        TextLines(file, encoding="latin-one")


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("a\n", {"train": "absent.txt"}, "no file absent.txt"),
        ("\n", {}, "hold no text"),
        ("", {}, "hold no text"),
        ("a\n", {"labels": "first", "unit": "file"}, "label of a line"),
        ("a\n", {"labels": "first", "separator": ""}, "needs a separator"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, content: str, arguments: dict[str, Any], message: str) -> None:
    """Before the run."""
    with pytest.raises(UsageError, match=message):
        TextLines(**{"train": write(tmp_path / "a.txt", content), **arguments})


def test_another_text_has_another_fingerprint(tmp_path: Path) -> None:
    """So has another class."""
    found = [
        fingerprint(TextLines(write(tmp_path / "a.txt", text), labels="first", val_fraction=0).train)
        for text in ("a\tx\nb\ty\n", "a\tx\nb\tz\n", "b\tx\na\ty\n", "a\tx\nb\ty\n")
    ]
    assert found[0] == found[3] and len({str(item) for item in found}) == 3
