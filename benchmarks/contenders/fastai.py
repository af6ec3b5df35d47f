"""Fastai, with torch's optimizer in its wrapper."""

from __future__ import annotations

from fastai.callback.core import Callback, CancelValidException, TrainEvalCallback
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from torch import nn

from benchmarks.tasks import OPTIMIZER, Work

LIBRARY = "fastai"
VARIANTS = {
    "quiet": "no default callbacks but the one that sets the training mode",
    "default": "`Learner.fit` with its recorder and progress bar",
}


class NoValidation(Callback):
    """Fastai always validates after an epoch; here nobody does."""

    def before_validate(self) -> None:
        raise CancelValidException


def fit(work: Work, variant: str) -> None:
    if work.prepared_steps is None:
        loader = DataLoader(work.task.dataset(), bs=work.task.batch_size, shuffle=True)
    else:
        loader = work.loader()
    callbacks = [NoValidation()]
    callbacks += [TrainEvalCallback()] if variant == "quiet" else [ProgressCallback()]
    learner = Learner(
        DataLoaders(loader, loader),
        work.model,
        loss_func=nn.CrossEntropyLoss(),
        opt_func=OptimWrapper(opt=work.optimizer()),
        path=work.folder,
        cbs=callbacks,
        default_cbs=variant == "default",
    )
    learner.fit(work.epochs, lr=OPTIMIZER["lr"], wd=OPTIMIZER["weight_decay"])
