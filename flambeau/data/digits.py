"""scikit-learn's bundled digits: 1,797 scanned 8x8 images, there without a download."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Interval
from torch.nn.functional import interpolate

from flambeau.data.in_memory import ArrayDataset
from flambeau.data.module import DataModule
from flambeau.data.sklearn_files import read_sklearn_file
from flambeau.data.splits import split
from flambeau.data.transforms import RandomShift
from flambeau.registry import register

_GREATEST = 16.0  # the values are counts of the set pixels in 4x4 blocks of a bitmap


@register.data("digits")
class Digits(DataModule):
    """Handwritten digits, 1,797 real 8x8 images bundled with scikit-learn (Alpaydin and Kaynak, UCI, 1998).

    Args:
        image_size: side of the images; larger ones than 8 are made by interpolation.
        interpolation: how larger images are made.
        val_fraction: share of the images that is held out for validation; stratified, a function of the seed.
        test_fraction: likewise for the test.
        augment: shift each training image by up to one eighth of its side, at random.
        seed: what the split is a function of.

    Images are float32 (1, image_size, image_size), normalised with the mean and standard deviation of all
    pixels of the training images; targets are int64 class indices.
    """

    num_classes: int = 10
    in_channels: int = 1
    image_size: int
    input_shape: tuple[int, int, int]
    num_features: int
    mean: float
    std: float

    def __init__(
        self,
        image_size: Annotated[int, Ge(8)] = 8,
        interpolation: Literal["nearest", "bilinear"] = "bilinear",
        val_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.15,
        test_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.15,
        augment: bool = False,
        seed: int = 0,
    ) -> None:
        self.image_size = image_size
        self.input_shape = (1, image_size, image_size)
        self.num_features = image_size * image_size
        images, labels = read_digits()
        if image_size != 8:
            images = interpolate(images, size=(image_size, image_size), mode=interpolation)
        train, val, test = split(len(labels), (val_fraction, test_fraction), seed, labels=labels.numpy())
        pixels = images.numpy()[train].astype(np.float64)  # numpy's sums do not depend on the number of threads
        self.mean, self.std = float(pixels.mean()), float(pixels.std())
        images = (images - self.mean) / self.std
        self.train = ArrayDataset(images[train], labels[train])
        self.val = ArrayDataset(images[val], labels[val]) if len(val) else None
        self.test = ArrayDataset(images[test], labels[test]) if len(test) else None
        if augment:
            self.train_transform = RandomShift(max(1, image_size // 8), fill=-self.mean / self.std)


def read_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """All images, (1797, 1, 8, 8) in 0..1, and their classes."""
    text = read_sklearn_file("digits.csv.gz", "the digits")
    table = np.array(text.replace("\n", ",").rstrip(",").split(","), dtype=np.float32).reshape(-1, 65)
    images = torch.from_numpy(table[:, :-1] / _GREATEST).reshape(-1, 1, 8, 8)
    return images, torch.from_numpy(table[:, -1].astype(np.int64))
