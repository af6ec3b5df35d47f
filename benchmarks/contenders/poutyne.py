"""Poutyne."""

from __future__ import annotations

from poutyne import Model
from torch import nn

from benchmarks.tasks import Work

LIBRARY = "poutyne"
VARIANTS = {"quiet": "`verbose=False`", "default": "`fit_generator` with its progress bar"}


def fit(work: Work, variant: str) -> None:
    model = Model(work.model, work.optimizer(), nn.CrossEntropyLoss())
    model.fit_generator(work.loader(), epochs=work.epochs, verbose=variant == "default")
