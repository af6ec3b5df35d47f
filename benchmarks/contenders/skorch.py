"""Skorch."""

from __future__ import annotations

from typing import Any

import skorch
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.tasks import OPTIMIZER, PreparedBatches, Work

LIBRARY = "skorch"
VARIANTS = {
    "quiet": '`callbacks="disable"`, `verbose=0`',
    "default": "its default callbacks, a line an epoch; no validation split",
}


def fit(work: Work, variant: str) -> None:
    def loader(dataset: Any, **settings: Any) -> PreparedBatches | DataLoader[Any]:
        return work.loader()

    quiet = {"callbacks": "disable", "verbose": 0} if variant == "quiet" else {}
    net = skorch.NeuralNet(
        work.model,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        **{"lr" if key == "lr" else f"optimizer__{key}": value for key, value in OPTIMIZER.items()},
        max_epochs=work.epochs,
        batch_size=work.task.batch_size,
        iterator_train=loader,
        train_split=None,
        **quiet,
    )
    net.fit(work.task.dataset(), y=None)
