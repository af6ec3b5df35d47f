"""The loop of most tutorials: a shuffling DataLoader, and the loss read in every step."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.tasks import OPTIMIZER, Work

LIBRARY = "torch"
VARIANTS = {
    "same AdamW": "shuffling DataLoader, `.item()` in each step; the optimizer's settings are everybody's (fused)",
    "default AdamW": "the same with the implementation of AdamW that torch takes if nothing is said",
}


def fit(work: Work, variant: str) -> None:
    model, criterion, loader = work.model, nn.CrossEntropyLoss(), work.loader()
    optimizer = torch.optim.AdamW(
        model.parameters(), **{**OPTIMIZER, "fused": True if variant == "same AdamW" else None}
    )
    for _ in range(work.epochs):
        model.train()
        running_loss = 0.0
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
