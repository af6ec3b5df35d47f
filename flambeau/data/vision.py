"""MNIST, FashionMNIST and CIFAR, as torchvision keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval

from flambeau.data.image_files import Images, read_cifar, read_mnist
from flambeau.data.image_folder import torchvision
from flambeau.data.in_memory import ArrayDataset
from flambeau.data.module import DataModule
from flambeau.data.splits import split
from flambeau.data.transforms import Chain, NormalizeBytes, RandomFlip, RandomShift
from flambeau.registry import register


@dataclass(frozen=True)
class _Facts:
    """What is known of a dataset; mean and standard deviation of its training images, values in 0..1."""

    num_classes: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


_KNOWN = {
    "MNIST": _Facts(10, 28, (0.1307,), (0.3081,)),
    "FashionMNIST": _Facts(10, 28, (0.2860,), (0.3530,)),
    "CIFAR10": _Facts(10, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR100": _Facts(100, 32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}

_CIFAR_FOLDERS = {"CIFAR10": "cifar-10-batches-py", "CIFAR100": "cifar-100-python"}


@register.data("torchvision")
class TorchvisionImages(DataModule):
    """MNIST, FashionMNIST, CIFAR10 or CIFAR100, in the files that torchvision keeps.

    Args:
        dataset: which of them.
        root: torchvision's data folder; the files lie in `root/MNIST/raw`, `root/cifar-10-batches-py` and so on.
        download: fetch missing files, with torchvision.
        val_fraction: share of the training images that is held out for validation; stratified, a function of the
            seed. The dataset's own test images are the test.
        augment: move each training image by up to an eighth of its side; mirror those of CIFAR at random too.
        seed: what the split is a function of.

    Images stay bytes in memory, uint8 (C, H, W), and become float32 with mean 0 and standard deviation 1 a batch
    at a time on the device. Targets are int64 class indices.
    """

    num_classes: int
    in_channels: int
    image_size: int
    input_shape: tuple[int, int, int]
    num_features: int

    def __init__(
        self,
        dataset: Literal["MNIST", "FashionMNIST", "CIFAR10", "CIFAR100"],
        root: Path = Path("data"),
        download: bool = False,
        val_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.1,
        augment: bool = False,
        seed: int = 0,
    ) -> None:
        facts = _KNOWN[dataset]
        root = Path(root)
        if download:
            _download(dataset, root)
        images, labels = _read(dataset, root, train=True)
        self.num_classes = facts.num_classes
        self.in_channels, self.image_size = len(facts.mean), facts.image_size
        self.input_shape = (self.in_channels, self.image_size, self.image_size)
        self.num_features = images[0].numel()
        train, val = split(len(labels), (val_fraction,), seed, labels=labels.numpy())
        data = ArrayDataset(images, labels)
        self.train = data.subset(train)
        self.val = data.subset(val) if len(val) else None
        self.test = ArrayDataset(*_read(dataset, root, train=False))
        self.batch_transform = NormalizeBytes(facts.mean, facts.std)
        if augment:
            shift = RandomShift(facts.image_size // 8)
            self.train_transform = Chain(shift, RandomFlip()) if dataset.startswith("CIFAR") else shift


def _read(dataset: str, root: Path, *, train: bool) -> Images:
    if dataset in ("MNIST", "FashionMNIST"):
        return read_mnist(root / dataset / "raw", train=train)
    if dataset == "CIFAR100":
        names, labels = ["train" if train else "test"], "fine_labels"
    else:
        names, labels = [f"data_batch_{number}" for number in range(1, 6)] if train else ["test_batch"], "labels"
    folder = root / _CIFAR_FOLDERS[dataset]
    return read_cifar([folder / name for name in names], labels, _KNOWN[dataset].num_classes)


def _download(dataset: str, root: Path) -> None:
    datasets = torchvision("datasets")
    if dataset in ("MNIST", "FashionMNIST"):
        getattr(datasets, dataset)(root, download=True)
        return
    source = getattr(datasets, dataset)
    if not (root / _CIFAR_FOLDERS[dataset]).is_dir():
        # Not through the dataset's constructor, which would unpickle the files.
        fetch = datasets.utils.download_and_extract_archive
        fetch(source.url, str(root), filename=source.filename, md5=source.tgz_md5)
