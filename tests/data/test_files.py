"""Folders of files as data: what a file becomes, which class it has, and which part it is in."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.projects import InProcess

from flambeau.data import EvalFeeder
from flambeau.data.file_readers import ImageReader
from flambeau.data.files import Files
from flambeau.data.fingerprint import fingerprint
from flambeau.data.parts import in_common
from flambeau.errors import MissingExtraError, UsageError

Image = pytest.importorskip("PIL.Image", reason="Pillow writes the images of these tests")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_image(path: Path, mode: str = "RGB", value: int = 0, size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("L", "P") else (value,) * len(mode)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twenty images of two classes, in folders of folders."""
    for index in range(20):
        name = ("cat", "dog")[index % 2]
        write_image(tmp_path / "root" / name / f"day{index // 10}" / f"{index:02}.png", value=index)
    return tmp_path / "root"


def paths(dataset: Any) -> list[str]:
    return [] if dataset is None else dataset.paths


def test_each_file_is_in_one_part(root: Path) -> None:
    """By the seed, each class in proportion; the class is the first folder of the path."""
    data = Files(root, val_fraction=0.2, test_fraction=0.3, seed=1)
    assert [len(part) for part in (data.train, data.val, data.test)] == [10, 4, 6]
    assert sorted(paths(data.train) + paths(data.val) + paths(data.test)) == sorted(
        path.relative_to(root).as_posix() for path in root.rglob("*.png")
    )
    assert data.class_names == ["cat", "dog"] and data.num_classes == 2
    for part in (data.train, data.val, data.test):
        assert sum(part.targets) * 2 == len(part)
        assert [path.split("/")[0] for path in part.paths] == [data.class_names[target] for target in part.targets]
    assert paths(Files(root, val_fraction=0.2, seed=1).val) == paths(Files(root, val_fraction=0.2, seed=1).val)
    assert paths(Files(root, val_fraction=0.2, seed=1).val) != paths(Files(root, val_fraction=0.2, seed=2).val)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_images_of_any_colours_become_rgb(tmp_path: Path, mode: str) -> None:
    """Or shades of grey, where these are asked for."""
    write_image(tmp_path / "a" / ("x.tiff" if mode == "CMYK" else "x.png"), mode, 7)
    (colours, _), *_ = Files(tmp_path, val_fraction=0).train
    assert colours.shape == (3, 4, 6) and colours.dtype is torch.uint8
    (grey, _), *_ = Files(tmp_path, val_fraction=0, reader="grey").train
    assert grey.shape == (1, 4, 6)
    if mode in ("RGB", "L"):
        assert (colours == 7).all() and (grey == 7).all()


def test_images_are_resized_and_normalised(root: Path) -> None:
    """By the settings, a batch at a time; what the model needs to know is offered."""
    data = Files(root, image_size=8, mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])
    assert data.input_shape == data.train[0][0].shape == (3, 8, 8)
    assert (data.in_channels, data.image_size, data.num_features) == (3, 8, 192)
    batch = next(EvalFeeder(data.train, batch_size=4, batch_transform=data.batch_transform).batches())
    assert batch.inputs[0].mean().item() == pytest.approx(int(Path(data.train.paths[0]).stem) / 255, abs=1e-6)
    assert batch.targets.dtype is torch.int64
    with pytest.raises(UsageError, match=r"data.mean: 1 numbers, and the images have 3"):
        Files(root, mean=[0.5])


def test_labels_come_from_a_group_of_the_regular_expression(root: Path) -> None:
    """Of the relative path; or there are none."""
    data = Files(root, regex=r"(cat|dog)/(?P<label>day\d)/.*[02468]\.png", labels="regex", val_fraction=0)
    assert data.class_names == ["day0", "day1"]
    assert data.train.targets == [0] * 5 + [1] * 5
    plain = Files(root, labels="none", val_fraction=0)
    assert len(plain.train[0]) == 1 and not hasattr(plain, "num_classes")
    assert next(EvalFeeder(plain.train, batch_size=4).batches()).targets is None


def test_parts_can_be_folders(root: Path) -> None:
    """Then nothing is cut from the training files for a part that is there; classes are the same in all."""
    for part, name in (("train", "cat"), ("train", "dog"), ("val", "dog")):
        for index in range(3):
            write_image(root / "parted" / part / name / f"{index}.png")
    data = Files(root / "parted", folders=True, val_fraction=0.5)
    assert [len(paths(part)) for part in (data.train, data.val, data.test)] == [6, 3, 0]
    assert data.val.targets == [1, 1, 1]
    write_image(root / "parted" / "test" / "mouse" / "0.png")
    with pytest.raises(UsageError, match=r"test files have classes that no training file has: \['mouse'\]"):
        Files(root / "parted", folders=True)
    with pytest.raises(UsageError, match="no files in a folder train/"):
        Files(root, folders=True)


def test_parts_can_be_lists(root: Path, tmp_path: Path) -> None:
    """Of relative paths; a line that names no file is given with its number."""
    train, val = tmp_path / "train.txt", tmp_path / "val.txt"
    train.write_text("cat/day0/00.png\ndog/day0/01.png\n\n")
    val.write_text("dog/day1/11.png\n")
    data = Files(root, lists={"train": train, "val": val})
    assert paths(data.train) == ["cat/day0/00.png", "dog/day0/01.png"]
    assert paths(data.val) == ["dog/day1/11.png"] and data.test is None
    val.write_text("dog/day1/11.png\ndog/day1/10.png\n")
    with pytest.raises(UsageError, match=r"val.txt:2: no file 'dog/day1/10.png'"):
        Files(root, lists={"train": train, "val": val})
    with pytest.raises(UsageError, match="no part 'valid'"):
        Files(root, lists={"train": train, "valid": val})
    val.write_text("cat/day0/00.png\n")
    data = Files(root, lists={"train": train, "val": val})
    assert in_common(data.val, data.train) == 1


def test_other_kinds_of_files(tmp_path: Path) -> None:
    """Arrays, texts and bytes."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", np.full((2, 3), 1.5))
        (tmp_path / name / "x.txt").write_text("größer", encoding="utf-8")
    arrays = Files(tmp_path, pattern="**/*.npy", reader="npy", val_fraction=0)
    assert arrays.train[0][0].dtype is torch.float32 and arrays.train[1][1] == 1
    texts = Files(tmp_path, pattern="**/*.txt", reader="text", val_fraction=0)
    assert texts.train[0] == ("größer", 0)
    assert next(EvalFeeder(texts.train, batch_size=2).batches()).inputs == ["größer"] * 2
    raw = Files(tmp_path, pattern="**/*.txt", reader="bytes", val_fraction=0)
    assert raw.train[0][0] == "größer".encode()


class Trap:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_files_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And an array with Python objects is not run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"no image")
    (tmp_path / "a" / "x.txt").write_bytes(b"good\nb\xffd")
    np.save(tmp_path / "a" / "x.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    for pattern, reader, message in (
        ("**/*.png", "image", "x.png cannot be read as an image"),
        ("**/*.txt", "text", "x.txt:2: byte 6 is not text in utf-8"),
        ("**/*.npy", "npy", "x.npy cannot be read as an array"),
    ):
        data = Files(tmp_path, pattern=pattern, reader=reader, val_fraction=0)
        with pytest.raises(UsageError, match=message):
            data.train[0]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pattern": "*.tif"}, "no file below .* matches the pattern"),
        ({"regex": "("}, "no regular expression"),
        ({"labels": "regex"}, "needs a group"),
        ({"reader": "picture"}, "there are image, grey"),
        ({"reader": "os.remove"}, "standard library"),
        ({"reader": "numpy.load"}, "refused"),
        ({"reader": "flambeau.data.file_readers.KINDS"}, "no function"),
        ({"reader": "text", "image_size": 3}, "leave image_size out"),
        ({"folders": True, "lists": {"train": Path("x")}}, "give one of them"),
        ({"lists": {"val": Path("x")}}, "no entry 'train'"),
        ({"lists": {"train": Path("absent.txt")}}, "there is no file absent.txt"),
        ({"root": Path("absent")}, "there is no folder absent"),
    ],
)
def test_what_cannot_be_is_said_with_a_remedy(root: Path, arguments: dict[str, Any], message: str) -> None:
    """Before any file is opened."""
    with pytest.raises(UsageError, match=message):
        Files(**{"root": root, **arguments})


def test_a_file_without_a_folder_has_no_class(root: Path) -> None:
    """Unless labels come from elsewhere."""
    write_image(root / "stray.png")
    with pytest.raises(UsageError, match=r"'stray.png' lies in no folder"):
        Files(root)
    assert "stray.png" in Files(root, labels="none", val_fraction=0).train.paths


def test_without_pillow_the_extra_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any file is opened."""
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError, match=r"flambeau\[images\]"):
        Files(root)


def test_readers_travel_to_workers() -> None:
    """Pickled, where processes are not forked."""
    reader = pickle.loads(pickle.dumps(ImageReader("L", 5)))
    assert (reader.mode, reader.size) == ("L", 5)


def test_a_file_of_another_size_gives_another_fingerprint(root: Path) -> None:
    """And one of another name, and of another content; a copy of them all is the same."""
    data = Files(root, val_fraction=0).train
    before = fingerprint(data)
    copy = root.parent / "copy"
    __import__("shutil").copytree(root, copy, copy_function=__import__("shutil").copy)
    assert fingerprint(Files(copy, val_fraction=0).train) == before
    write_image(root / "cat" / "day0" / "00.png", value=77)
    assert fingerprint(data) != before
    assert fingerprint(data, "full")["kind"] == "full"


def test_a_run_trains_on_a_folder(flambeau: InProcess, root: Path) -> None:
    """With a reader of the project's own too."""
    (flambeau.project.root / "reading.py").write_text(
        "import numpy as np, torch\nfrom PIL import Image\n\n"
        "def brightness(path):\n    return torch.full((6,), float(np.array(Image.open(path)).mean()) / 255)\n"
    )
    data = f"data={{name: files, root: '{root}', reader: reading.brightness, batch_size: 4}}"
    answer = flambeau("train", "tiny", "--run-dir", "run", data, "trainer.epochs=1")
    assert "18 train, 2 validation samples" in answer.out
