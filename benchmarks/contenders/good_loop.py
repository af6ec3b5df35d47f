"""The loop that a careful person writes by hand: sliced batches, fused optimizer, no waiting for the loss."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from benchmarks.tasks import Batch, Work

LIBRARY = "torch"
VARIANTS = {"by hand": "sliced batches, no `.item()` in the step"}


def fit(work: Work, variant: str) -> None:
    model, optimizer, criterion = work.model, work.optimizer(), nn.CrossEntropyLoss()
    model.train()
    for epoch in range(work.epochs):
        for inputs, targets in work.loader() if work.prepared_steps is not None else sliced(work, epoch):
            loss = criterion(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def sliced(work: Work, epoch: int) -> Iterable[Batch]:
    """The data in a new order, indexed a batch at a time."""
    task = work.task
    order = torch.randperm(len(task.targets), generator=torch.Generator().manual_seed(epoch))
    for rows in torch.split(order, task.batch_size):
        yield task.normalise(task.inputs[rows]), task.targets[rows]
