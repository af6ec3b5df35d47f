"""Look at what a generator makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Ge

from flambeau.callbacks.sample_images import scaled
from flambeau.errors import UsageError
from flambeau.registry import register
from flambeau.training.callback import Callback
from flambeau.training.evaluation import evaluation_mode
from flambeau.training.gan import GANTrainer
from flambeau.training.trainer import Trainer


@register.callback("generated_images")
class GeneratedImages(Callback):
    """Send images that the generator makes of the same noise each time to the trackers, as `val/generated`.

    Where the monitored score is that of the weights' average (`val/ema/...`), so are the images. Each is scaled to 0..1
    by its own least and greatest value.

    Args:
        count: images shown.
        every: validations between two looks.
    """

    def __init__(self, count: Annotated[int, Ge(1)] = 64, every: Annotated[int, Ge(1)] = 1) -> None:
        self.count = count
        self.every = every
        self._validations = 0

    def on_fit_start(self, trainer: Trainer) -> None:
        if not isinstance(trainer, GANTrainer):
            raise UsageError(
                "callbacks.generated_images: the trainer generates nothing", remedy="use trainer.name: gan"
            )

    def on_validation_end(self, trainer: Trainer, scores: Mapping[str, float]) -> None:
        self._validations += 1
        if self._validations % self.every or not trainer.recorder.trackers or not isinstance(trainer, GANTrainer):
            return
        averaged = trainer.ema is not None and trainer.monitor.startswith("val/ema/")
        model = trainer.ema.model if trainer.ema is not None and averaged else trainer.model
        with torch.no_grad(), evaluation_mode(model):
            images = scaled(trainer.generate(model, range(self.count))).cpu()
        for tracker in trainer.recorder.trackers:
            tracker.log_image("val/generated", images, trainer.state.step)

    def state_dict(self) -> dict[str, int]:
        return {"validations": self._validations}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._validations = state["validations"]
