"""MNIST and CIFAR are read from the files as they are handed out, and nothing in a file is run."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flambeau.data import EvalFeeder
from flambeau.data.image_files import read_cifar, read_idx, unpickle_plain
from flambeau.data.vision import TorchvisionImages
from flambeau.errors import MissingExtraError, UsageError


def write_idx(path: Path, array: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    if path.suffix == ".gz":
        content = gzip.compress(content)
    path.write_bytes(content)


def write_mnist(folder: Path, *, suffix: str = "") -> None:
    for prefix, size in (("train", 60), ("t10k", 20)):
        images = np.arange(size)[:, None, None] + np.zeros((size, 28, 28), int)
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", np.arange(size) % 10)


def write_cifar10(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        data = np.zeros((20, 3072), np.uint8)
        data[:, 0] = np.arange(20) + 20 * number
        content = {"batch_label": name, "labels": (np.arange(20) % 10).tolist(), "data": data, "filenames": ["x"] * 20}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def write_cifar100(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, size in (("train", 200), ("test", 100)):
        content = {
            "fine_labels": (np.arange(size) % 100).tolist(),
            "coarse_labels": [0] * size,
            "data": np.zeros((size, 3072), np.uint8),
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def write(root: Path, dataset: str) -> None:
    if dataset == "CIFAR10":
        write_cifar10(root / "cifar-10-batches-py")
    elif dataset == "CIFAR100":
        write_cifar100(root / "cifar-100-python")
    else:
        write_mnist(root / dataset / "raw")


@pytest.mark.parametrize(
    ("dataset", "sizes", "shape", "classes"),
    [
        ("MNIST", (54, 6, 20), (1, 28, 28), 10),
        ("FashionMNIST", (54, 6, 20), (1, 28, 28), 10),
        ("CIFAR10", (90, 10, 20), (3, 32, 32), 10),
        ("CIFAR100", (180, 20, 100), (3, 32, 32), 100),
    ],
)
def test_each_dataset_has_its_own_facts(
    tmp_path: Path, dataset: Any, sizes: tuple[int, ...], shape: tuple[int, ...], classes: int
) -> None:
    """Validation is cut from the training images; the test images are the dataset's own."""
    write(tmp_path, dataset)
    data = TorchvisionImages(dataset, root=tmp_path)
    assert tuple(len(part) for part in (data.train, data.val, data.test)) == sizes
    assert data.input_shape == shape
    assert data.num_classes == classes
    image, target = data.train[0]
    assert (image.dtype, image.shape, target.dtype) == (torch.uint8, shape, torch.int64)


def test_validation_is_never_the_test_set(tmp_path: Path) -> None:
    """The training images are parted in two; images and labels stay together."""
    write_mnist(tmp_path / "MNIST" / "raw", suffix=".gz")
    data = TorchvisionImages("MNIST", root=tmp_path, val_fraction=0.5, seed=1)
    seen = [
        [int(image[0, 0, 0]) for image, _ in (part[i] for i in range(len(part)))] for part in (data.train, data.val)
    ]
    assert sorted(seen[0] + seen[1]) == list(range(60))
    for part in (data.train, data.val, data.test):
        assert all(int(part[i][0][0, 0, 0]) % 10 == int(part[i][1]) for i in range(len(part)))


def test_images_are_normalised_on_the_way_to_the_model(tmp_path: Path) -> None:
    """With the training set's known mean and standard deviation of each channel."""
    write(tmp_path, "CIFAR10")
    data = TorchvisionImages("CIFAR10", root=tmp_path)
    batch = next(EvalFeeder(data.test, batch_size=20, batch_transform=data.batch_transform).batches())
    assert batch.inputs.dtype is torch.float32
    assert torch.allclose(
        batch.inputs[3, :, 0, 0], torch.tensor([(103 / 255 - 0.4914) / 0.2470, -0.4822 / 0.2435, -0.4465 / 0.2616])
    )


def test_training_images_can_be_augmented(tmp_path: Path) -> None:
    """A shifted and mirrored image keeps its type and shape; evaluation is left alone."""
    write(tmp_path, "CIFAR10")
    data = TorchvisionImages("CIFAR10", root=tmp_path, augment=True)
    assert data.eval_transform is None
    image = torch.arange(3 * 32 * 32).view(3, 32, 32).to(torch.uint8)
    seen = {data.train_transform((image, 1))[0].numpy().tobytes() for _ in range(300)}
    assert len(seen) > 100
    assert all(len(item) == 3072 for item in seen)


def test_missing_files_are_named_with_the_remedy(tmp_path: Path) -> None:
    """Nothing is downloaded unasked."""
    for dataset in ("MNIST", "CIFAR10"):
        with pytest.raises(UsageError, match=r"(?s)there is no file .*data\.download"):
            TorchvisionImages(dataset, root=tmp_path)  # type: ignore[arg-type]


def test_a_download_without_torchvision_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision is needed for the download alone."""
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    with pytest.raises(MissingExtraError, match=r"flambeau\[vision\]"):
        TorchvisionImages("MNIST", root=tmp_path, download=True)


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08\x03", b"\0\0\x08\x01\0\0\0\x05abcd", b"\0\0\x0d\x01\0\0\0\x01abcd"]
)
def test_a_damaged_idx_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """Empty, cut off, too short, of another type."""
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UsageError, match="not a whole IDX file"):
        read_idx(tmp_path / "x")


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_calls_something_is_refused_unrun(tmp_path: Path, protocol: int) -> None:
    """Whatever it calls, and however the name is written."""
    import builtins
    import os

    import numpy.testing

    marker = tmp_path / "ran"
    for function, *arguments in (
        (os.system, f"touch {marker}"),
        (builtins.eval, f"open({str(marker)!r}, 'w')"),
        (builtins.getattr, "x", "upper"),
        (numpy.testing.rundocs, str(marker)),
    ):
        (tmp_path / "x").write_bytes(pickle.dumps({"data": Call(function, *arguments)}, protocol=protocol))
        with pytest.raises(UsageError, match="which plain data does not need"):
            unpickle_plain(tmp_path / "x")
    assert not marker.exists()


def test_dotted_names_in_a_pickle_do_not_reach_further(tmp_path: Path) -> None:
    """Protocol 4 may ask for `numpy` and `ndarray.__class__...`; only the plain names are known."""
    (tmp_path / "x").write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile.\x93.")
    with pytest.raises(UsageError, match="which plain data does not need"):
        unpickle_plain(tmp_path / "x")


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_plain_pickles_are_read(tmp_path: Path, protocol: int) -> None:
    """As numpy of today writes them too."""
    content = {"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": [1, 2], "raw": b"\xff\x00", "name": "é"}
    (tmp_path / "x").write_bytes(pickle.dumps(content, protocol=protocol))
    read = unpickle_plain(tmp_path / "x")
    assert np.array_equal(read.pop("data"), content.pop("data"))
    assert read == content


def test_the_pickles_that_python_2_wrote_are_read(tmp_path: Path) -> None:
    """As CIFAR's files are: strings of bytes, an array by numpy 1, protocol 2."""
    data = np.arange(2 * 3072).astype(np.uint8)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"  # an empty array, then its state
        b"(K\x01(K\x02M\x00\x0ctcnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", data.size) + data.tobytes()
    )
    content = b"\x80\x02}(U\x04data" + array + b"tbU\x06labels](K\x03K\x05eU\x0bbatch_labelU\x05batchu."
    (tmp_path / "x").write_bytes(content)
    images, labels = read_cifar([tmp_path / "x"], "labels", 10)
    assert images.flatten().tolist() == data.tolist()
    assert labels.tolist() == [3, 5]


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"text", pickle.dumps([1, 2]), pickle.dumps({"data": 1})])
def test_a_file_that_is_not_cifars_is_refused(tmp_path: Path, content: bytes) -> None:
    """Cut off, no pickle, or other plain data."""
    write(tmp_path, "CIFAR10")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(content)
    with pytest.raises(UsageError, match="data_batch_3"):
        TorchvisionImages("CIFAR10", root=tmp_path)


def test_cifar_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """One label for each image, each a class of the dataset."""
    for labels in ([0] * 19, [10] * 20, "no labels", None):
        folder = tmp_path / str(labels)[:3]
        write(folder, "CIFAR10")
        content = {"data": np.zeros((20, 3072), np.uint8), "labels": labels}
        (folder / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(UsageError, match="test_batch"):
            TorchvisionImages("CIFAR10", root=folder)
