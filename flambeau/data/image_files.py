"""The files of MNIST and CIFAR, read without torchvision and without running what is in them."""

from __future__ import annotations

import gzip
import pickle
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flambeau.errors import UsageError

Images = tuple[torch.Tensor, torch.Tensor]
"""Images, uint8 (N, C, H, W), and class indices, int64 (N,)."""

_IDX_BYTES = 8  # the type code of unsigned bytes


def read_mnist(folder: Path, *, train: bool) -> Images:
    """MNIST or FashionMNIST from its IDX files, plain or gzipped (yann.lecun.com/exdb/mnist)."""
    prefix = "train" if train else "t10k"
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte")
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte")
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise UsageError(f"the images and labels in {folder} do not fit: {images.shape} and {labels.shape}")
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels.astype(np.int64))


def read_idx(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An array of bytes in IDX format: two zeros, type, number of dimensions, sizes (big-endian), data."""
    zipped = path.with_name(path.name + ".gz")
    if path.is_file():
        content = path.read_bytes()
    elif zipped.is_file():
        content = gzip.decompress(zipped.read_bytes())
    else:
        raise UsageError(f"there is no file {path}", remedy=DOWNLOAD)
    dimensions = content[3] if len(content) > 3 else 0
    start = 4 + 4 * dimensions
    shape = tuple(np.frombuffer(content[4:start], dtype=">u4").tolist())
    if content[:3] != bytes([0, 0, _IDX_BYTES]) or len(shape) != dimensions or len(content) - start != prod(shape):
        raise UsageError(f"{path} is not a whole IDX file of bytes")
    return np.frombuffer(bytearray(content[start:]), dtype=np.uint8).reshape(shape)


def read_cifar(files: list[Path], labels: str, num_classes: int) -> Images:
    """CIFAR from its "Python version" files; `labels` is the entry that holds the classes."""
    images, classes = [], []
    for path in files:
        if not path.is_file():
            raise UsageError(f"there is no file {path}", remedy=DOWNLOAD)
        content = unpickle_plain(path)
        data = content.get("data") if isinstance(content, dict) else None
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
            raise UsageError(f"{path} is not a CIFAR file: it has no uint8 rows of 3,072 bytes")
        answers = content.get(labels)
        known = range(num_classes)
        if not isinstance(answers, list) or len(answers) != len(data) or any(label not in known for label in answers):
            raise UsageError(f"{path} has no list '{labels}' with one of {num_classes} classes for each image")
        images.append(torch.from_numpy(data).reshape(-1, 3, 32, 32))
        classes.append(torch.tensor(answers, dtype=torch.int64))
    return torch.cat(images), torch.cat(classes)


def unpickle_plain(path: Path) -> Any:
    """Load a pickle of dicts, lists, numbers, text and numpy arrays; anything else in it is refused unrun."""
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="latin1").load()
    except UsageError:
        raise
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise UsageError(f"{path} is damaged: {error}") from error


def _bytes_of(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text in the encoding {encoding}")
    return text.encode("latin-1")


class _PlainUnpickler(pickle.Unpickler):
    """Builds plain data and numeric arrays only; knows the names that numpy 1 and 2 and Python 2 write."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.zeros(0).__reduce__()[0]
        if module == "numpy" and name == "ndarray":
            return np.ndarray
        if module == "numpy" and name == "dtype":
            return np.dtype
        if module == "_codecs" and name == "encode":
            return _bytes_of
        raise UsageError(
            f"a data file asks for {module}.{name}, which plain data does not need",
            remedy="the file is not what it should be: fetch it anew from its source",
        )


DOWNLOAD = "put the files there, or set data.download to true"
