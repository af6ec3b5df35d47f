"""Look at what the model is given, and at what it makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from flambeau.distributed.sharding import is_sharded_model
from flambeau.registry import register
from flambeau.training.callback import Callback
from flambeau.training.evaluation import evaluation_mode
from flambeau.training.trainer import Trainer

_GAP = 1
"""Pixels between an input, its output and its target."""


@register.callback("sample_images")
class SampleImages(Callback):
    """Send the first images of the validation data, as the model gets them, with its outputs, to the trackers.

    Images are inputs of shape (C, H, W) with 1, 3 or 4 channels.

    - Where outputs are images too (an autoencoder's), or scores of the classes of each pixel (a segmentation's), each
      sample is one picture `val/input_output_target`: the input, what the model makes of it, and what it should be,
      side by side. An autoencoder's three have one scale, that of the target; classes are shades from black (the
      first) to white (the last), and an ignored pixel, whose target is no class, is black.
    - Otherwise the inputs are `val/inputs`, each scaled to 0..1 by its own least and greatest value, and class scores
      are written as text.

    Of a model in pieces over several processes only the inputs are shown: one process cannot call it.

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
        if not isinstance(batch.inputs, Tensor) or batch.inputs.ndim != 4 or batch.inputs.shape[1] not in (1, 3, 4):
            return
        inputs = batch.inputs[: self.count]
        outputs = None
        if not is_sharded_model(trainer.model):
            with torch.no_grad(), evaluation_mode(trainer.model), trainer.precision.autocast():
                outputs = trainer.model(inputs)
        targets = batch.targets[: self.count] if isinstance(batch.targets, Tensor) else None
        pictures = _side_by_side(inputs, outputs, targets)
        step = trainer.state.step
        for tracker in trainer.recorder.trackers:
            if pictures is not None:
                tracker.log_image("val/input_output_target", pictures, step)
                continue
            tracker.log_image("val/inputs", _scaled(inputs, inputs).cpu(), step)
            if isinstance(outputs, Tensor) and outputs.ndim == 2:
                classes = ", ".join(str(int(index)) for index in outputs.argmax(dim=1))
                tracker.log_text("val/predicted", f"predicted classes: {classes}", step)

    def state_dict(self) -> dict[str, int]:
        return {"validations": self._validations}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._validations = state["validations"]


def _side_by_side(inputs: Tensor, outputs: object, targets: Tensor | None) -> Tensor | None:
    """Pictures (N, C, H, 3W and gaps) of inputs, outputs and targets; None where outputs or targets are no images."""
    if not isinstance(outputs, Tensor) or outputs.ndim != 4 or targets is None:
        return None
    if outputs.shape == inputs.shape == targets.shape:
        columns = [_scaled(images, targets) for images in (inputs, outputs, targets)]
    elif outputs.shape[2:] == inputs.shape[2:] == targets.shape[1:] and not targets.is_floating_point():
        columns = [_scaled(inputs, inputs)]
        if outputs.shape[1] > 1:
            last = outputs.shape[1] - 1
            shades = [labels.masked_fill((labels < 0) | (labels > last), 0) / last
                      for labels in (outputs.argmax(1), targets)]  # fmt: skip
        else:  # binary scores
            shades = [(outputs[:, 0] > 0).float(), targets.clamp(0, 1).float()]
        columns += [shade[:, None].expand_as(inputs) for shade in shades]
    else:
        return None
    gap = torch.ones_like(columns[0][..., :_GAP])
    first, second, third = columns
    return torch.cat([first, gap, second, gap, third], dim=-1).cpu()


def _scaled(images: Tensor, by: Tensor) -> Tensor:
    """Each image moved and stretched so that the least and greatest value of its counterpart in `by` are 0 and 1."""
    flat = by.float().flatten(1)
    low, high = flat.min(dim=1).values, flat.max(dim=1).values
    shape = (-1, *[1] * (images.ndim - 1))
    return ((images.float() - low.view(shape)) / (high - low).clamp_min(1e-12).view(shape)).clamp(0, 1)
