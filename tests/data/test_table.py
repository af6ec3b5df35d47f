"""Tables: everything is learned from the training rows alone, and nothing is guessed in silence."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.projects import InProcess

from flambeau.data import split
from flambeau.data.table import TableFiles
from flambeau.errors import MissingExtraError, UsageError

HEAD = ["age", "income", "city", "member", "note", "bought", "spent"]


def write(path: Path, rows: list[list[Any]], head: list[str] = HEAD, delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(head)
        writer.writerows(rows)
    return path


def some_rows(count: int = 40, seed: int = 0) -> list[list[Any]]:
    rng = np.random.default_rng(seed)
    return [
        [
            int(rng.integers(18, 90)),
            round(float(rng.normal(3e4, 1e4)), 2),
            ("Bonn", "Köln", "Trier")[k % 3],
            ("true", "False")[k % 2],
            f"note {k}",
            ("no", "yes")[k % 2],
            round(float(rng.normal(50, 20)), 3),
        ]
        for k in range(count)
    ]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "people.csv", some_rows())


def arrays(part: Any) -> tuple[Any, Any]:
    return part.fetch(torch.arange(len(part)))


def test_columns_become_numbers_by_their_kind(file: Path) -> None:
    """Numbers stay, truth values are 0 and 1, text one number a category; the targets are no inputs."""
    data = TableFiles(str(file), targets="bought", exclude=["note", "spent"], standardize=False)
    assert data.feature_names == ["age", "income", "city=Bonn", "city=Köln", "city=Trier", "member"]
    assert data.num_features == 6 and data.class_names == ["no", "yes"] and data.num_classes == 2
    assert [len(part) for part in (data.train, data.val, data.test)] == [28, 6, 6]
    whole = np.array(some_rows(), dtype=object)
    train, val, _ = split(40, (0.15, 0.15), 0)
    for part, rows in ((data.train, train), (data.val, val)):
        inputs, targets = arrays(part)
        assert inputs.dtype is torch.float32
        assert np.allclose(inputs[:, :2], whole[rows, :2].astype(float), rtol=1e-6)
        assert [("Bonn", "Köln", "Trier")[row.argmax()] for row in inputs[:, 2:5]] == whole[rows, 2].tolist()
        assert inputs[:, 5].tolist() == [float(value == "true") for value in whole[rows, 3]]
        assert [data.class_names[target] for target in targets] == whole[rows, 5].tolist()


def test_scales_are_learned_from_the_training_rows_alone(file: Path) -> None:
    """Of inputs and of targets; the held-out rows had no part in them, and the way back is offered."""
    data = TableFiles(str(file), targets="spent", inputs=["age", "income", "member"], seed=3)
    inputs, targets = arrays(data.train)
    assert torch.allclose(inputs[:, :2].mean(0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(inputs[:, :2].std(0, correction=0), torch.ones(2), atol=1e-5)
    assert set(inputs[:, 2].tolist()) == {0.0, 1.0}
    assert targets.shape == (28, 1) and abs(targets.mean().item()) < 1e-5
    assert abs(arrays(data.val)[0][:, 0].mean().item()) > 1e-3
    rows = split(40, (0.15, 0.15), 3)
    spent = np.array([row[6] for row in some_rows()])
    assert data.target_mean == pytest.approx(spent[rows[0]].mean())
    assert data.target_scale == data.target_std == pytest.approx(spent[rows[0]].std())
    back = arrays(data.test)[1][:, 0] * data.target_scale + data.target_mean
    assert np.allclose(back, spent[rows[2]], atol=1e-3)
    plain = TableFiles(str(file), targets="spent", inputs=["age"], scale_targets=False, seed=3)
    assert np.allclose(arrays(plain.test)[1][:, 0], spent[rows[2]], atol=1e-3)
    assert not hasattr(plain, "target_scale")


def test_several_targets_have_a_scale_each(file: Path) -> None:
    """As lists, in their order."""
    data = TableFiles(str(file), targets=["age", "spent"], task="regression", inputs=["income"])
    assert data.num_targets == 2 and len(data.target_mean) == len(data.target_scale) == 2
    assert data.train[0][1].shape == (2,)


def test_categories_as_codes_for_embeddings(file: Path) -> None:
    """Beside the numbers; how many there are is offered."""
    data = TableFiles(
        str(file), targets="bought", exclude=["note"], categorical=["member"], encoding="codes", unknown="own"
    )
    inputs, _ = data.train[0]
    assert inputs["numbers"].shape == (3,) and inputs["categories"].dtype is torch.int64
    assert data.cardinalities == [4, 3] and data.num_features == 3
    assert arrays(data.train)[0]["categories"].max(0).values.tolist() == [2, 1]


def test_a_missing_value_is_an_error_that_counts_them(tmp_path: Path) -> None:
    """Unless the configuration says what to do; the filling is learned from the training rows alone."""
    rows = [[k, "ab"[k % 2], k] for k in range(10)]
    rows[2][0], rows[5][0], rows[7][1] = "", "NA", ""
    file = str(write(tmp_path / "t.csv", rows, ["x", "c", "y"]))
    options: dict[str, Any] = {"targets": "y", "task": "regression", "val_fraction": 0, "test_fraction": 0}
    with pytest.raises(UsageError, match=r"'x' has no value in 2 of the 10 training rows"):
        TableFiles(file, **options)
    data = TableFiles(file, **options, missing="median", standardize=False)
    inputs, _ = arrays(data.train)
    assert inputs[2, 0] == inputs[5, 0] == 5.0
    assert data.feature_names == ["x", "c=a", "c=b", "c=missing"] and inputs[7].tolist() == [7, 0, 0, 1]
    mean = arrays(TableFiles(file, **options, missing="mean", standardize=False).train)[0]
    assert mean[2, 0].item() == pytest.approx(sum(k for k in range(10) if k not in (2, 5)) / 8)
    assert len(TableFiles(file, **options, missing="drop").train) == 7
    rows[4][2] = ""
    with pytest.raises(UsageError, match=r"target 'y' has no value in 1 of the 10"):
        TableFiles(str(write(tmp_path / "t.csv", rows, ["x", "c", "y"])), **options, missing="mean")


def test_a_category_that_training_does_not_have_is_an_error_or_its_own(tmp_path: Path) -> None:
    """It is not put with another in silence; a class always is an error."""
    head = ["c", "y"]
    train = str(write(tmp_path / "train.csv", [["a", "u"], ["b", "v"]], head))
    val = str(write(tmp_path / "val.csv", [["a", "u"], ["z", "v"]], head))
    with pytest.raises(UsageError, match=r"'c' of the validation rows has categories that no training row has: z"):
        TableFiles(train, val=val, targets="y", test_fraction=0)
    data = TableFiles(train, val=val, targets="y", test_fraction=0, unknown="own")
    assert arrays(data.val)[0].tolist() == [[1, 0, 0], [0, 0, 1]] and data.feature_names[-1] == "c=unknown"
    val = str(write(tmp_path / "val.csv", [["a", "w"]], head))
    with pytest.raises(UsageError, match=r"target 'y' of the validation rows has classes .*: w"):
        TableFiles(train, val=val, targets="y", test_fraction=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": "boght"}, "did you mean 'bought'?"),
        ({"targets": "bought", "inputs": ["x*"]}, "it has age, income"),
        ({"targets": "bought", "inputs": ["bought", "age"]}, "the model would then see"),
        ({"targets": "age"}, "classification or regression"),
        ({"targets": "bought", "task": "regression"}, "is text"),
        ({"targets": ["bought", "city"]}, "has one target, not 2"),
        ({"targets": "bought", "exclude": ["*"]}, "no column is left"),
        ({"targets": "spent", "stratified": True}, "one target that is a class"),
        ({"targets": "bought", "categorical": ["cty"]}, "did you mean 'city'?"),
        ({"train": "absent.csv"}, "there is no file absent.csv"),
        ({"train": "absent/*.csv"}, "no file matches"),
        ({"delimiter": ";;"}, "one character"),
    ],
)
def test_what_cannot_be_is_said_with_a_remedy(file: Path, arguments: dict[str, Any], message: str) -> None:
    """The nearest column, or all of them."""
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        TableFiles(**{"train": str(file), **arguments})


def test_whole_numbers_are_classes_if_they_are_said_to_be(file: Path) -> None:
    """In the order of their size."""
    data = TableFiles(
        str(file), targets="age", task="classification", inputs=["income"], val_fraction=0, test_fraction=0
    )
    assert data.class_names == [str(age) for age in sorted({row[0] for row in some_rows()})]


def test_a_stratified_split_holds_out_each_class(file: Path) -> None:
    """In proportion."""
    data = TableFiles(str(file), targets="bought", exclude=["note"], val_fraction=0.2, stratified=True)
    assert torch.bincount(arrays(data.val)[1]).tolist() == [4, 4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n3\n", r"t.csv:3: 1 values, and the first line names 2 columns"),
        ("a;b\n1,5;2\n", r"t.csv:2: 2 values, and the first line names 1 columns"),
        ("a,b\n", "has no rows"),
        ("", "has no rows"),
        ("a,a\n1,2\n", "two columns called 'a'"),
        ('a,b\n"1,2\n', "cannot be read as CSV"),
        ("a,b\n\udcff,2\n", "cannot be read as CSV"),
        ("a,b\n1,inf\n", "not finite"),
    ],
)
def test_bad_csv_is_said_to_be_so(tmp_path: Path, content: str, message: str) -> None:
    """With file and line."""
    path = tmp_path / "t.csv"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=message):
        TableFiles(str(path), val_fraction=0, test_fraction=0)


def test_several_files_are_one_table(tmp_path: Path) -> None:
    """By a glob, sorted by name; a column's kind is that of all its values."""
    write(tmp_path / "part-1.csv", [[1, 2], [3, 4]], ["x", "y"])
    write(tmp_path / "part-2.csv", [["5.5", 6]], ["x", "y"])
    data = TableFiles(str(tmp_path / "part-*.csv"), standardize=False, val_fraction=0, test_fraction=0)
    assert arrays(data.train)[0].tolist() == [[1, 2], [3, 4], [5.5, 6]] and data.train[0][1] is None
    write(tmp_path / "part-3.csv", [[1, 2]], ["x", "z"])
    with pytest.raises(UsageError, match=r"part-3.csv has other columns than .*part-1.csv: y, z"):
        TableFiles(str(tmp_path / "part-*.csv"))


def test_text_where_training_has_numbers_is_named(tmp_path: Path) -> None:
    """With file, row and column: a whole column does not become text by one slip."""
    train = str(write(tmp_path / "train.csv", [[1.5, 2], [3, 4]], ["x", "y"]))
    val = str(write(tmp_path / "val.csv", [[1, 2], ["3,5", 4]], ["x", "y"]))
    with pytest.raises(
        UsageError, match=r"val.csv: row 2 of the column 'x' is '3,5', and in training it holds numbers"
    ):
        TableFiles(train, val=val, test_fraction=0)


def test_other_delimiters_and_encodings(tmp_path: Path) -> None:
    """As other programs write them; a mark at the beginning of the file is no part of a name."""
    path = write(tmp_path / "t.csv", [[1, 2]] * 2, ["größe", "y"], delimiter=";")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_text().encode())
    assert TableFiles(str(path), delimiter=";", val_fraction=0, test_fraction=0).feature_names == ["größe", "y"]
    path.write_bytes("größe;y\n1;2\n".encode("latin-1"))
    data = TableFiles(str(path), delimiter=";", file_encoding="latin-1", val_fraction=0, test_fraction=0)
    assert data.feature_names == ["größe", "y"]


def test_parquet_is_read_as_csv_is(file: Path, tmp_path: Path) -> None:
    """The same tensors; missing values are null or NaN, and columns of other kinds can be left out."""
    pa = pytest.importorskip("pyarrow", reason="the extra 'tables' is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = some_rows()
    columns: dict[str, Any] = {name: [row[place] for row in rows] for place, name in enumerate(HEAD)}
    columns["member"] = [value == "true" for value in columns["member"]]
    columns["city"] = pa.array(columns["city"]).dictionary_encode()
    columns["when"] = pa.array([0] * len(rows), pa.timestamp("s"))
    parquet.write_table(pa.table(columns), tmp_path / "people.parquet")
    options: dict[str, Any] = {"targets": "bought", "seed": 4}
    one = TableFiles(str(tmp_path / "people.parquet"), exclude=["when", "note"], **options)
    other = TableFiles(str(file), exclude=["note"], **options)
    assert one.feature_names == other.feature_names
    for part in ("train", "val", "test"):
        for a, b in zip(arrays(getattr(one, part)), arrays(getattr(other, part)), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(UsageError, match=r"the column 'when' holds timestamp"):
        TableFiles(str(tmp_path / "people.parquet"), exclude=["note"], **options)
    parquet.write_table(pa.table({"x": [1.0, None, math.nan], "y": [1, 2, 3]}), tmp_path / "gaps.parquet")
    with pytest.raises(UsageError, match="no value in 2 of the 3"):
        TableFiles(str(tmp_path / "gaps.parquet"), val_fraction=0, test_fraction=0)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UsageError, match=r"bad.parquet cannot be read as Parquet"):
        TableFiles(str(tmp_path / "bad.parquet"))


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For Parquet; CSV needs nothing."""
    (tmp_path / "t.parquet").touch()
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"flambeau\[tables\]"):
        TableFiles(str(tmp_path / "t.parquet"))


def test_a_run_trains_on_a_table(flambeau: InProcess, file: Path) -> None:
    """What the model needs to know is referred to."""
    data = f"data={{name: table, train: '{file}', targets: bought, exclude: [note, spent], batch_size: 4}}"
    model = 'model={name: mlp, in_features: "${data.num_features}", hidden_size: 8, num_classes: "${data.num_classes}"}'
    answer = flambeau("train", "tiny", "--run-dir", "run", data, model, "trainer.epochs=1")
    assert "28 train, 6 validation, 6 test samples" in answer.out
