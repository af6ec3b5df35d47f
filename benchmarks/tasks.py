"""The models and the data that all contenders train: the same tensors, initial weights and optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.clock import Clock

Batch = tuple[Tensor, Tensor]


class MLP(nn.Module):
    """64-256-256-10 with ReLU: rows (N, 64) to logits (N, 10). Small, so that the engine's own cost shows."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.layers = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, inputs: Tensor) -> Tensor:
        self.clock.tick()
        logits: Tensor = self.layers(inputs)
        return logits


class LeNet(nn.Module):
    """LeNet-5 with ReLU and max pooling: images (N, 1, 28, 28) to logits (N, 10)."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
        )  # fmt: skip

    def forward(self, inputs: Tensor) -> Tensor:
        self.clock.tick()
        logits: Tensor = self.layers(inputs)
        return logits


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images (N, 1, 28, 28) of uint8, normalised one by one when they are asked for, as most datasets do."""

    def __init__(self, task: Task) -> None:
        self.images = task.inputs
        self.targets: list[int] = task.targets.tolist()
        self.normalise = task.normalise

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.normalise(self.images[index]), self.targets[index]


class PreparedBatches:
    """`steps` batches that are ready: the same input for every engine, at no cost."""

    def __init__(self, task: Task, steps: int) -> None:
        self.batch_size = task.batch_size
        self.dataset = range(steps * task.batch_size)  # some engines ask for its length
        count = min(steps, len(task.targets) // task.batch_size)
        rows = [slice(batch * self.batch_size, (batch + 1) * self.batch_size) for batch in range(count)]
        self._batches = [(task.normalise(task.inputs[of]), task.targets[of]) for of in rows]
        self._steps = steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        count = len(self._batches)
        return (self._batches[step % count] for step in range(self._steps))


@dataclass(frozen=True)
class Task:
    """One model on one data set; `inputs` are raw, `normalise` makes them what the model takes."""

    name: str
    model: Callable[[Clock], nn.Module]
    inputs: Tensor
    targets: Tensor
    batch_size: int
    normalise: Callable[[Tensor], Tensor]

    @property
    def steps_per_epoch(self) -> int:
        return len(self.targets) // self.batch_size

    def dataset(self) -> Dataset[Any]:
        """The dataset that most people would write for this data."""
        if self.inputs.dtype == torch.uint8:
            return ImageDataset(self)
        return TensorDataset(self.inputs, self.targets)


@dataclass
class Work:
    """What a contender is handed for one fit: train `model` for `epochs` epochs over `loader()`."""

    task: Task
    model: nn.Module
    epochs: int
    prepared_steps: int | None
    """Steps of prepared input (one epoch), or None: the contender's usual data path, over `epochs` epochs."""
    folder: Path
    """An empty folder for what the engine writes."""

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), **OPTIMIZER)

    def loader(self) -> PreparedBatches | DataLoader[Batch]:
        """The prepared batches, or the usual loader of torch with an order that all who use it share."""
        if self.prepared_steps is not None:
            return PreparedBatches(self.task, self.prepared_steps)
        return DataLoader(
            self.task.dataset(),
            batch_size=self.task.batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(0),
        )


OPTIMIZER: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.01, "fused": True}


def digits_mlp() -> Task:
    """Scikit-learn's 1,797 digits, scaled beforehand and repeated to 1,000 steps of 64 samples an epoch."""
    images, targets = _digits()
    repeats = -(-64_000 // len(targets))
    return Task(
        name="digits MLP",
        model=MLP,
        inputs=(images.flatten(1) / 16).repeat(repeats, 1)[:64_000].contiguous(),
        targets=targets.repeat(repeats)[:64_000].contiguous(),
        batch_size=64,
        normalise=_as_it_is,
    )


def lenet_images() -> Task:
    """The digits as 30,720 images of 28x28 bytes: 240 steps of 128, normalised within the pipeline."""
    images, targets = _digits()
    large = nn.functional.interpolate(images[:, None], size=(28, 28), mode="bilinear")
    repeats = -(-30_720 // len(targets))
    return Task(
        name="LeNet 28x28",
        model=LeNet,
        inputs=(large * 15.9).to(torch.uint8).repeat(repeats, 1, 1, 1)[:30_720].contiguous(),
        targets=targets.repeat(repeats)[:30_720].contiguous(),
        batch_size=128,
        normalise=_normalise_bytes,
    )


TASKS: dict[str, Callable[[], Task]] = {"digits": digits_mlp, "lenet": lenet_images}


def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    images, targets = load_digits().images, load_digits().target
    return torch.from_numpy(images).float(), torch.from_numpy(targets).long()


def _as_it_is(inputs: Tensor) -> Tensor:
    return inputs


def _normalise_bytes(images: Tensor) -> Tensor:
    return (images.float() / 255 - 0.1307) / 0.3081
