"""Made-up data of any shape, for benchmarks, tests and first steps."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Interval

from flambeau.data.in_memory import ArrayDataset
from flambeau.data.module import DataModule
from flambeau.data.splits import split
from flambeau.data.transforms import NormalizeBytes
from flambeau.errors import UsageError
from flambeau.registry import register
from flambeau.runtime.seeds import derive

_BYTE_MEAN, _BYTE_STD = 128.0, 32.0


@register.data("synthetic")
class Synthetic(DataModule):
    """Random data that can be learned: noisy classes, or a noisy function of the inputs.

    Args:
        task: `classification`: inputs scatter around a random centre for each class, targets are int64 class
            indices. `regression`: inputs are standard normal, targets a random smooth function of them, of
            shape (num_targets,) and the inputs' dtype.
        size: samples in all.
        input_shape: shape of one input, e.g. [64] or [3, 32, 32].
        num_classes: classes, of equal size (classification).
        num_targets: numbers to be predicted (regression).
        noise: standard deviation of what cannot be learned; with 1, neighbouring classes overlap.
        dtype: of the inputs; uint8 is made float32 and normalised a batch at a time, like images.
        val_fraction: share of the samples that is held out for validation.
        test_fraction: likewise for the test.
        seed: what the data and the split are functions of.
    """

    num_classes: int
    num_targets: int
    input_shape: tuple[int, ...]
    num_features: int
    in_channels: int
    image_size: int

    def __init__(
        self,
        task: Literal["classification", "regression"] = "classification",
        size: Annotated[int, Ge(1)] = 1024,
        input_shape: Sequence[Annotated[int, Ge(1)]] = (64,),
        num_classes: Annotated[int, Ge(1)] = 10,
        num_targets: Annotated[int, Ge(1)] = 1,
        noise: Annotated[float, Ge(0)] = 0.5,
        dtype: Literal["float32", "float64", "bfloat16", "float16", "uint8"] = "float32",
        val_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.15,
        test_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.15,
        seed: int = 0,
    ) -> None:
        if not input_shape:
            raise UsageError("data.input_shape must have at least one dimension")
        self.num_classes = num_classes
        self.num_targets = num_targets
        self.input_shape = tuple(input_shape)
        self.num_features = prod(self.input_shape)
        self.in_channels = self.input_shape[0]
        self.image_size = self.input_shape[-1]
        generator = torch.Generator().manual_seed(derive(seed, "synthetic"))
        labels = None
        inputs = torch.randn(size, self.num_features, generator=generator)
        if task == "classification":
            targets = torch.arange(size) % num_classes
            centres = torch.randn(num_classes, self.num_features, generator=generator)
            inputs = inputs.mul_(noise).add_(centres[targets])
            labels = targets.numpy()
        else:
            targets = _smooth_function(inputs, num_targets, generator)
            targets += noise * torch.randn(size, num_targets, generator=generator)
        inputs = inputs.view(size, *self.input_shape)
        if dtype == "uint8":
            inputs = (inputs * _BYTE_STD + _BYTE_MEAN).clamp_(0, 255).to(torch.uint8)
            channels = self.in_channels if len(self.input_shape) > 1 else 1
            self.batch_transform = NormalizeBytes([_BYTE_MEAN / 255] * channels, [_BYTE_STD / 255] * channels)
        else:
            inputs = inputs.to(getattr(torch, dtype))
            if task == "regression":
                targets = targets.to(inputs.dtype)
        train, val, test = split(size, (val_fraction, test_fraction), seed, labels=labels)
        data = ArrayDataset(inputs, targets)
        self.train = data.subset(train)
        self.val = data.subset(val) if len(val) else None
        self.test = data.subset(test) if len(test) else None


def _smooth_function(inputs: torch.Tensor, outputs: int, generator: torch.Generator) -> torch.Tensor:
    """Softsign of a random projection of a few features, (N, outputs).

    Element by element, since a matrix product's last bits depend on the number of threads.
    """
    features = min(inputs.shape[1], 16)
    weights = torch.randn(features, outputs, generator=generator)
    projection = torch.zeros(len(inputs), outputs)
    for feature in range(features):
        projection += inputs[:, feature, None] * weights[feature]
    return projection / (1 + projection.abs())
