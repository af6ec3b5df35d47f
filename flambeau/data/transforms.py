"""Transforms that data modules bring: of the image of a sample, and of a batch of bytes on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flambeau.data import image_transforms
from flambeau.data.batch import Batch


class Chain:
    """Transforms one after the other."""

    def __init__(self, *transforms: Callable[[Any], Any]) -> None:
        self.transforms = transforms

    def __call__(self, sample: Any) -> Any:
        for transform in self.transforms:
            sample = transform(sample)
        return sample


def in_turn(first: Callable[[Any], Any] | None, second: Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
    """Both, those of them that there are; None if there are none."""
    if first is not None and second is not None:
        return Chain(first, second)
    return first or second


class OnInput:
    """Apply a transform of images to the first half of a sample `(image, target)`."""

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    def __call__(self, sample: tuple[Any, Any]) -> tuple[Any, Any]:
        return self.transform(sample[0]), sample[1]


class RandomShift(OnInput):
    """Move the image of a sample, (C, H, W), by up to `reach` pixels in each direction; `fill` comes in."""

    def __init__(self, reach: int, fill: float = 0.0) -> None:
        super().__init__(image_transforms.RandomShift(reach, fill))


class RandomFlip(OnInput):
    """Mirror the image of a sample, (C, H, W), left to right, half of the time."""

    def __init__(self) -> None:
        super().__init__(image_transforms.RandomFlip())


class RandomFlipWithMask:
    """Mirror the image of a sample, (C, H, W), and its mask, (H, W), together.

    Left to right half of the time, and upside down half of the time.
    """

    def __call__(self, sample: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = sample
        dims = [dim for dim, draw in zip((-1, -2), torch.rand(2).tolist(), strict=True) if draw < 0.5]
        return image.flip(dims), mask.flip(dims)


class Standardize:
    """Batch transform: numbers (N, F) to (inputs - mean) / std, feature by feature.

    Args:
        mean, std: of each feature, (F,); on the host.

    Done a batch at a time, so that `flambeau predict` takes a file of numbers as they were measured.
    """

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        self._of: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {torch.device("cpu"): (mean, std)}

    def __call__(self, batch: Batch) -> Batch:
        inputs: torch.Tensor = batch.inputs
        if inputs.device not in self._of:
            mean, std = self._of[torch.device("cpu")]
            self._of[inputs.device] = mean.to(inputs.device), std.to(inputs.device)
        mean, std = self._of[inputs.device]
        return batch.replace(inputs=(inputs - mean) / std, targets=batch.targets)


class NormalizeBytes:
    """Batch transform: bytes (N, C, ...) to float32 with mean 0 and standard deviation 1 in each channel.

    Args:
        mean, std: of each channel, for values in 0..1.

    Done a batch at a time on the device, so that bytes are all that is kept in memory and moved.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = tuple(mean)
        self.std = tuple(std)
        self._scales: dict[tuple[torch.device, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, batch: Batch) -> Batch:
        inputs: torch.Tensor = batch.inputs
        offset, scale = self._scale(inputs.device, inputs.dim())
        return batch.replace(inputs=inputs.to(torch.float32, copy=True).sub_(offset).mul_(scale), targets=batch.targets)

    def _scale(self, device: torch.device, dimensions: int) -> tuple[torch.Tensor, torch.Tensor]:
        key = (device, dimensions)
        if key not in self._scales:
            shape = (len(self.mean),) + (1,) * (dimensions - 2)
            self._scales[key] = (
                torch.tensor([255 * value for value in self.mean], device=device).view(shape),
                torch.tensor([1 / (255 * value) for value in self.std], device=device).view(shape),
            )
        return self._scales[key]


def standardize_by(inputs: npt.NDArray[np.float64], dtype: torch.dtype = torch.float32) -> Standardize:
    """The batch transform that gives these inputs, (N, F), the mean 0 and the standard deviation 1 in each feature.

    A feature that is always the same becomes 0.
    """
    mean, std = inputs.mean(0), inputs.std(0)  # numpy's sums do not depend on the number of threads
    return Standardize(torch.from_numpy(mean).to(dtype), torch.from_numpy(np.where(std == 0, 1.0, std)).to(dtype))
