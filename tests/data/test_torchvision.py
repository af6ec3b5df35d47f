"""What needs torchvision itself: folders of images, and agreement with its own readers."""

from __future__ import annotations

import gzip
import struct
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flambeau.config.sections import LoaderSettings
from flambeau.data import EvalFeeder, Feeder
from flambeau.data.image_folder import ImageFolder
from flambeau.data.vision import TorchvisionImages
from flambeau.errors import UsageError

pytestmark = pytest.mark.torchvision


@pytest.fixture
def images() -> Any:
    return pytest.importorskip("PIL.Image")


def write_images(folder: Path, images: Any, classes: str = "ab", size: int = 10) -> None:
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(size):
            pixels = rng.integers(0, 256, (24 + number, 30, 3), dtype=np.uint8)
            images.fromarray(pixels).save(folder / name / f"{number}.png")


def files_of(dataset: Any) -> list[str]:
    base = getattr(dataset, "dataset", dataset)
    indices = getattr(dataset, "indices", range(len(dataset)))
    return [base.samples[index][0] for index in indices]


def test_a_folder_of_classes_is_parted_by_the_seed(tmp_path: Path, images: Any) -> None:
    """Training, validation and test are disjoint and hold each class in proportion."""
    write_images(tmp_path, images)
    data = ImageFolder(tmp_path, image_size=16, val_fraction=0.2, test_fraction=0.2)
    parts = [files_of(part) for part in (data.train, data.val, data.test)]
    assert [len(part) for part in parts] == [12, 4, 4]
    assert len({name for part in parts for name in part}) == 20
    assert [sum("/a/" in name for name in part) for part in parts] == [6, 2, 2]
    assert (data.num_classes, data.class_names, data.input_shape) == (2, ["a", "b"], (3, 16, 16))


def test_folders_for_the_parts_are_taken_as_they_are(tmp_path: Path, images: Any) -> None:
    """Without `val/`, validation is cut from `train/`, never from `test/`."""
    write_images(tmp_path / "train", images)
    write_images(tmp_path / "test", images, size=3)
    data = ImageFolder(tmp_path, image_size=16, val_fraction=0.2)
    assert [len(part) for part in (data.train, data.val, data.test)] == [16, 4, 6]
    assert all("/train/" in name for name in files_of(data.val))
    write_images(tmp_path / "val", images, size=2)
    data = ImageFolder(tmp_path, image_size=16, val_fraction=0.2)
    assert [len(part) for part in (data.train, data.val, data.test)] == [20, 4, 6]


def test_parts_with_other_classes_are_refused(tmp_path: Path, images: Any) -> None:
    """Their class numbers would mean something else."""
    write_images(tmp_path / "train", images)
    write_images(tmp_path / "val", images, classes="ac")
    with pytest.raises(UsageError, match="other classes"):
        ImageFolder(tmp_path)
    with pytest.raises(UsageError, match="no folder"):
        ImageFolder(tmp_path / "missing")


def test_image_folders_give_the_same_batches_with_and_without_workers(tmp_path: Path, images: Any) -> None:
    """Random crops and mirrorings included; bytes are normalised on the device."""
    write_images(tmp_path, images)
    runs = []
    for workers in (0, 2):
        data = ImageFolder(tmp_path, image_size=16)
        feeder = Feeder(
            data.train,
            settings=LoaderSettings(workers=workers),
            batch_size=4,
            seed=0,
            transform=data.train_transform,
            batch_transform=data.batch_transform,
        )
        runs.append([batch.inputs for batch in islice(feeder.batches(), 7)])
        feeder.close()
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert runs[0][0].shape == (4, 3, 16, 16)
    assert runs[0][0].dtype is torch.float32
    assert not torch.equal(runs[0][0], runs[0][5])


def test_evaluation_sees_the_centre_of_each_image(tmp_path: Path, images: Any) -> None:
    """The same in every pass."""
    write_images(tmp_path, images)
    data = ImageFolder(tmp_path, image_size=16)
    feeder = EvalFeeder(data.val, batch_size=4, transform=data.eval_transform)
    passes = [torch.cat([batch.inputs for batch in feeder.batches()]) for _ in range(2)]
    assert torch.equal(*passes)
    assert passes[0].dtype is torch.uint8


def test_mnist_reads_as_torchvision_reads_it(tmp_path: Path) -> None:
    """The same files, the same images and labels."""
    from torchvision.datasets import MNIST

    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, size in (("train", 30), ("t10k", 10)):
        for kind, shape in (("images-idx3", (size, 28, 28)), ("labels-idx1", (size,))):
            header = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
            content = header + rng.integers(0, 10, shape, dtype=np.uint8).tobytes()
            (raw / f"{prefix}-{kind}-ubyte").write_bytes(content)
            (raw / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    theirs = MNIST(tmp_path, train=False)
    ours = TorchvisionImages("MNIST", root=tmp_path, download=True).test
    assert torch.equal(ours.inputs[:, 0], theirs.data)
    assert torch.equal(ours.targets, theirs.targets)
