"""The table of the model at the start of a run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from flambeau.data import Batch
from flambeau.data.batch import map_tensors
from flambeau.insight.summary import count_parameters, model_summary

if TYPE_CHECKING:
    from flambeau.training.trainer import Trainer

logger = logging.getLogger("flambeau")

DEPTH = 3
"""Levels of modules that are shown if nothing is said of it."""


def describe_model(trainer: Trainer, batch: Batch) -> str | None:
    """The table, with the shapes that a few rows of a batch take on their way; None where nobody reads it.

    To be called where everything is undone afterwards: the model is called once more, in evaluation mode.
    """
    if not _is_wanted(trainer):
        return None
    few = batch.split(max(batch.size // 2, 1))[0]
    with trainer.precision.autocast():
        return model_summary(trainer.model, map_tensors(lambda tensor: tensor.clone(), few.inputs), _depth(trainer))


def tell_summary(trainer: Trainer, text: str | None) -> None:
    """Write the table into log.txt, and show it on the terminal if that was asked for.

    Args:
        text: the table; None: the parameters are counted, without a call of the model.
    """
    if not _is_wanted(trainer):
        return
    text = text or count_parameters(trainer.model, _depth(trainer))
    if trainer.settings.summary is not None:
        trainer.recorder.say(text)
    elif trainer.recorder.folder is not None:
        logger.info("the model:\n%s", text)


def _is_wanted(trainer: Trainer) -> bool:
    settings, recorder = trainer.settings, trainer.recorder
    read = recorder.folder is not None or settings.summary is not None
    return trainer.world.is_main and settings.summary != 0 and read


def _depth(trainer: Trainer) -> int:
    return DEPTH if trainer.settings.summary is None else trainer.settings.summary
