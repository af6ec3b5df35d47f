"""Hugging Face Accelerate: the user's own loop over prepared objects."""

from __future__ import annotations

from accelerate import Accelerator
from torch import nn

from benchmarks.tasks import Work

LIBRARY = "accelerate"
VARIANTS = {"default": "`prepare`, `accelerator.backward`; it has nothing to switch off"}


def fit(work: Work, variant: str) -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer, loader = accelerator.prepare(work.model, work.optimizer(), work.loader())
    criterion = nn.CrossEntropyLoss()
    model.train()
    for _ in range(work.epochs):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
