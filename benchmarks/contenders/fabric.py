"""Lightning Fabric: the user's own loop over prepared objects."""

from __future__ import annotations

from lightning.fabric import Fabric
from torch import nn

from benchmarks.tasks import Work

LIBRARY = "lightning"
VARIANTS = {"default": "`setup`, `setup_dataloaders`, `fabric.backward`; it has nothing to switch off"}


def fit(work: Work, variant: str) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(work.model, work.optimizer())
    loader = work.loader()
    if work.prepared_steps is None:  # it takes nothing but torch's DataLoader
        loader = fabric.setup_dataloaders(loader)
    criterion = nn.CrossEntropyLoss()
    model.train()
    for _ in range(work.epochs):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            fabric.backward(loss)
            optimizer.step()
