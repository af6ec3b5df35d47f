"""Small tasks for trainers that are made in Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from flambeau import Trainer


def points(count: int = 20, *, features: int = 4, classes: int = 3, seed: int = 0, dtype: Any = None) -> TensorDataset:
    """Random points and classes."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, features, generator=generator, dtype=dtype)
    return TensorDataset(inputs, torch.randint(classes, (count,), generator=generator))


def linear(features: int = 4, classes: int = 3, *, seed: int = 1, dtype: Any = None) -> nn.Linear:
    """A linear classifier, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(features, classes, dtype=dtype)


def sgd(lr: float = 0.1, **arguments: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: torch.optim.SGD(model.parameters(), lr=lr, **arguments)


def make_trainer(
    model: nn.Module | None = None,
    train_data: Any = None,
    criterion: Any = None,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    *,
    kind: type[Trainer] = Trainer,
    **options: Any,
) -> Trainer:
    """A trainer on the CPU with little to do: one epoch over 20 points, stochastic gradient descent, no shuffling."""
    model = linear() if model is None else model
    options = {"device": "cpu", "batch_size": 8, "shuffle": False, "progress": False, **options}
    if "steps" not in options:
        options.setdefault("epochs", 1)
    return kind(
        model,
        points() if train_data is None else train_data,
        nn.CrossEntropyLoss() if criterion is None else criterion,
        (optimizer or sgd())(model),
        **options,
    )


def weights(model: nn.Module) -> torch.Tensor:
    """All parameters of a model in one vector, copied."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()
