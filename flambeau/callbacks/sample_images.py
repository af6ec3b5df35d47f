"""Look at what the model is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Ge

from flambeau.distributed.sharding import is_sharded_model
from flambeau.registry import register
from flambeau.training.callback import Callback
from flambeau.training.evaluation import evaluation_mode
from flambeau.training.trainer import Trainer


@register.callback("sample_images")
class SampleImages(Callback):
    """Send the first images of the validation data, as the model gets them, with its outputs, to the trackers.

    Images are inputs of shape (C, H, W) with 1, 3 or 4 channels; each is scaled to 0..1 by its own least and greatest
    value. An output that is itself an image (an autoencoder's) is shown beside; class scores are written as text. Of a
    model in pieces over several processes only the inputs are shown: one process cannot call it.

    Args:
        count: images shown.
        every: validations between two looks.
    """

    def __init__(self, count: Annotated[int, Ge(1)] = 16, every: Annotated[int, Ge(1)] = 1) -> None:
        self.count = count
        self.every = every
        self._validations = 0

    def on_validation_end(self, trainer: Trainer, scores: Mapping[str, float]) -> None:
        self._validations += 1
        if self._validations % self.every or not trainer.recorder.trackers:
            return
        batch = next(trainer.eval_batches(trainer.val_data))
        inputs = batch.inputs
        if not isinstance(inputs, torch.Tensor) or inputs.ndim != 4 or inputs.shape[1] not in (1, 3, 4):
            return
        outputs = None
        if not is_sharded_model(trainer.model):
            with torch.no_grad(), evaluation_mode(trainer.model), trainer.precision.autocast():
                outputs = trainer.model(inputs[: self.count])
        step = trainer.state.step
        for tracker in trainer.recorder.trackers:
            tracker.log_image("val/inputs", _scaled(inputs[: self.count]), step)
            if isinstance(outputs, torch.Tensor) and outputs.shape[1:] == inputs.shape[1:]:
                tracker.log_image("val/outputs", _scaled(outputs), step)
            elif isinstance(outputs, torch.Tensor) and outputs.ndim == 2:
                classes = ", ".join(str(int(index)) for index in outputs.argmax(dim=1))
                tracker.log_text("val/predicted", f"predicted classes: {classes}", step)

    def state_dict(self) -> dict[str, int]:
        return {"validations": self._validations}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._validations = state["validations"]


def _scaled(images: torch.Tensor) -> torch.Tensor:
    flat = images.float().flatten(1)
    low, high = flat.min(dim=1).values, flat.max(dim=1).values
    shape = (-1, *[1] * (images.ndim - 1))
    return ((images.float() - low.view(shape)) / (high - low).clamp_min(1e-12).view(shape)).cpu()
