"""Digits with noise on them, to be removed: the task of a denoising autoencoder."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from flambeau.data.digits import read_digits
from flambeau.data.module import DataModule
from flambeau.data.splits import split
from flambeau.registry import register


class NoisyImages(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Clean images as targets, and the same with Gaussian noise as inputs.

    The noise is drawn when a sample is read, from the generator that the engine seeds by (seed, epoch, index) in
    training and by (seed, index) in evaluation: new in every epoch, and the same in every evaluation and at any number
    of workers. It is no transform, which would put noise on the images of `flambeau predict` as well.

    Args:
        images: clean ones, (N, C, H, W).
        noise: its standard deviation, in the images' unit; 0 makes a plain autoencoder's data.
    """

    def __init__(self, images: torch.Tensor, noise: float) -> None:
        self.images = images
        self.noise = noise

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = self.images[index]
        return image + self.noise * torch.randn(image.shape), image


@register.data("noisy_digits")
class NoisyDigits(DataModule):
    """scikit-learn's digits with Gaussian noise as inputs, and without it as targets.

    Args:
        noise: standard deviation of the noise, where black is 0 and white is 1. What it adds is not cut off at 0 and 1,
            so that the noisy images have a PSNR of -20 log10(noise): 12.0 dB for 0.25.
        image_size: side of the images; larger ones than 8 are made by bilinear interpolation.
        val_fraction: share of the images that is held out for validation; stratified, a function of the seed.
        test_fraction: likewise for the test.
        seed: what the split is a function of.

    Inputs and targets are float32 (1, image_size, image_size).
    """

    in_channels: int = 1
    image_size: int
    input_shape: tuple[int, int, int]
    noise: float

    def __init__(
        self,
        noise: Annotated[float, Ge(0)] = 0.25,
        image_size: Annotated[int, Ge(8)] = 16,
        val_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.15,
        test_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.15,
        seed: int = 0,
    ) -> None:
        self.noise = noise
        self.image_size = image_size
        self.input_shape = (1, image_size, image_size)
        images, labels = read_digits()
        if image_size != 8:
            images = interpolate(images, size=(image_size, image_size), mode="bilinear")
        train, val, test = split(len(labels), (val_fraction, test_fraction), seed, labels=labels.numpy())
        self.train = NoisyImages(images[train], noise)
        self.val = NoisyImages(images[val], noise) if len(val) else None
        self.test = NoisyImages(images[test], noise) if len(test) else None
