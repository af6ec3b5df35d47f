"""Datasets of the Hugging Face library, from files and folders on this disk."""

from __future__ import annotations

import json
import sys
import types
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from support.projects import InProcess

from flambeau.config.sections import LoaderSettings
from flambeau.data import Feeder
from flambeau.data.fingerprint import fingerprint
from flambeau.data.huggingface import HuggingFace, datasets_library
from flambeau.data.parts import limited
from flambeau.errors import MissingExtraError, UsageError

library = pytest.importorskip("datasets", reason="the extra 'huggingface' is not installed")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and no cache but the test's own."""
    monkeypatch.setattr(library.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    library.disable_progress_bars()


def rows(count: int = 20) -> list[dict[str, Any]]:
    return [
        {"x": [float(k), 1.0], "text": f"text {k}", "label": ("neg", "pos")[k % 2], "score": k / 2}
        for k in range(count)
    ]


def write_json(path: Path, count: int = 20) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(count)))
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write_json(tmp_path / "rows.json")


def test_files_of_this_disk_are_read_by_their_format(file: str) -> None:
    """Lists of numbers become tensors; classes are those of the training samples, in order."""
    data = HuggingFace("json", inputs="x", targets="label", files=file, val_fraction=0.2, test_fraction=0.2)
    assert [len(part) for part in (data.train, data.val, data.test)] == [12, 4, 4]
    assert data.class_names == ["neg", "pos"] and data.num_classes == 2
    seen = []
    for part in (data.train, data.val, data.test):
        assert sum(part.targets) * 2 == len(part)
        for inputs, target in (part[index] for index in range(len(part))):
            assert inputs.dtype is torch.float32 and int(inputs[0]) % 2 == target
            seen.append(int(inputs[0]))
    assert sorted(seen) == list(range(20))


def test_several_columns_make_dicts(file: str) -> None:
    """And text stays text."""
    data = HuggingFace("json", inputs=["x", "text"], targets=["score"], files=file, val_fraction=0)
    inputs, targets = data.train[3]
    assert inputs["x"].tolist() == [3, 1] and inputs["text"] == "text 3" and targets == {"score": 1.5}
    plain = HuggingFace("json", inputs="text", files=file, val_fraction=0)
    assert plain.train[3] == ("text 3",)


@pytest.mark.parametrize("kind", ["saved", "parquet", "csv folder"])
def test_folders_and_other_formats(tmp_path: Path, kind: str) -> None:
    """What the library saved, and what lies in a folder as it is."""
    data = library.Dataset.from_list([{key: row[key] for key in ("text", "label", "score")} for row in rows()])
    folder = tmp_path / "folder"
    arguments: dict[str, Any] = {"source": str(folder)}
    if kind == "saved":
        features = data.features.copy()
        features["label"] = library.ClassLabel(names=["pos", "neg"])
        library.DatasetDict({"train": data.cast(features), "validation": data.cast(features)}).save_to_disk(str(folder))
        arguments["val"] = "validation"
    elif kind == "parquet":
        folder.mkdir()
        data.to_parquet(str(folder / "train.parquet"))
        arguments = {"source": "parquet", "files": {"train": str(folder / "train.parquet")}}
    else:
        folder.mkdir()
        data.to_csv(str(folder / "train.csv"))
    found = HuggingFace(**arguments, inputs="text", targets="label")
    assert found.class_names == (["pos", "neg"] if kind == "saved" else ["neg", "pos"])
    assert len(found.train) + len(found.val) == (40 if kind == "saved" else 20)
    assert found.train[0][1] in (0, 1)


def test_a_batch_is_fetched_at_once(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the library's own way for many rows."""
    data = HuggingFace("json", inputs="x", targets="label", files=file, val_fraction=0)
    fetched: list[int] = []
    get = library.Dataset.__getitems__
    monkeypatch.setattr(
        library.Dataset, "__getitems__", lambda self, keys: fetched.append(len(keys)) or get(self, keys)
    )
    feeder = Feeder(data.train, settings=LoaderSettings(), batch_size=8, seed=0)
    sizes = [batch.size for batch in islice(feeder.batches(), 3)]
    assert sizes == fetched == [8, 8, 4]


def test_images_become_rgb_bytes(tmp_path: Path) -> None:
    """As of other files."""
    image = pytest.importorskip("PIL.Image", reason="Pillow writes the images of this test")
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        image.new("L", (4, 3), 9).save(tmp_path / "images" / f"{name}.png")
    files = [str(tmp_path / "images" / f"{name}.png") for name in ("a", "b")]
    made = library.Dataset.from_dict({"image": files}).cast_column("image", library.Image(mode="RGB"))
    made.save_to_disk(str(tmp_path / "saved"))
    pixels = HuggingFace(str(tmp_path / "saved"), inputs="image", val_fraction=0).train[0][0]
    assert pixels.shape == (3, 3, 4) and pixels.dtype is torch.uint8 and (pixels == 9).all()


@pytest.mark.parametrize("buffer", [0, 6])
def test_a_stream_goes_on_where_it_was(file: str, buffer: int) -> None:
    """In its order, or shuffled anew in each pass: after a restart at any step the same batches."""

    def feeder() -> Feeder:
        data = HuggingFace(
            "json", inputs="x", targets="score", files=file, streaming=True, shuffle_buffer=buffer, seed=2
        )
        assert data.val is None
        return Feeder(data.train, settings=LoaderSettings(), batch_size=6, seed=0)

    def firsts(batches: Any, count: int) -> list[list[float]]:
        return [batch.inputs[:, 0].tolist() for batch in islice(batches, count)]

    whole = firsts(feeder().batches(), 10)
    assert sorted(chain(*whole[:4])) == sorted(chain(*whole[4:8])) == list(range(20))
    assert (whole[0] == whole[4]) is not bool(buffer)
    for step in (2, 4, 7):
        first = feeder()
        assert firsts(first.batches(), step) == whole[:step]
        second = feeder()
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert firsts(second.batches(step), 10 - step) == whole[step:]


def test_text_as_a_class_needs_all_of_the_data(file: str) -> None:
    """Which a stream does not see."""
    with pytest.raises(UsageError, match="not known before all is read"):
        HuggingFace("json", inputs="x", targets="label", files=file, streaming=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": "texxt"}, "did you mean 'text'?"),
        ({"targets": "zzz"}, "it has x, text, label, score"),
        ({"val": "validation"}, "it has train"),
        ({"files": None}, "which json files"),
        ({"files": "absent.json"}, "absent.json"),
        ({"source": "nobody/nothing", "files": None}, "no folder here, could not be had from the hub"),
        ({"shuffle_buffer": 5}, "in streaming alone"),
    ],
)
def test_what_cannot_be_is_said(file: str, arguments: dict[str, Any], message: str) -> None:
    """And without a network, what would be needed."""
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        HuggingFace(**{"source": "json", "inputs": "text", "files": file, **arguments})


def test_a_class_that_training_does_not_have_is_an_error(tmp_path: Path, file: str) -> None:
    """When it is met."""
    (tmp_path / "val.json").write_text(json.dumps({**rows()[0], "label": "mixed"}) + "\n")
    files = {"train": file, "validation": str(tmp_path / "val.json")}
    data = HuggingFace("json", inputs="x", targets="label", files=files, val="validation")
    with pytest.raises(UsageError, match="no training sample has the class 'mixed'"):
        data.val[0]


def test_code_that_comes_with_a_dataset_is_never_run(
    flambeau: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script in a folder is no dataset, an old library is refused, and there is no setting to allow it."""
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UsageError):
        HuggingFace(str(folder), inputs="x")
    assert not (tmp_path / "ran").exists()
    data = "data={name: huggingface, source: x/y, inputs: x, trust_remote_code: true}"
    assert "huggingface takes no such argument" in flambeau("train", "tiny", data, expect=2).err
    monkeypatch.setattr(library, "__version__", "3.6.0")
    with pytest.raises(UsageError, match="can run code that comes with a dataset"):
        datasets_library()


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is fetched."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"flambeau\[huggingface\]"):
        HuggingFace("json", inputs="x", files="a.json")


def test_a_projects_own_folder_of_that_name_is_not_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a plain folder it is no library that is installed; as a package it hides one."""
    module = types.ModuleType("datasets")
    monkeypatch.setitem(sys.modules, "datasets", module)
    with pytest.raises(MissingExtraError):
        datasets_library()
    module.__file__ = "datasets/__init__.py"
    with pytest.raises(UsageError, match=r"hides the library.*\n.*another name"):
        datasets_library()


def test_rows_have_a_fingerprint_and_a_limit(file: str, tmp_path: Path) -> None:
    """Of their content: a copy of the file is the same data."""
    one = HuggingFace("json", inputs="x", targets="label", files=file, val_fraction=0).train
    other = write_json(tmp_path / "copy.json")
    assert fingerprint(one) == fingerprint(
        HuggingFace("json", inputs="x", targets="label", files=other, val_fraction=0).train
    )
    assert fingerprint(one)["kind"] == "sampled"
    assert sum(one.targets[index] for index in limited(one, 10, 0).indices) == 5
