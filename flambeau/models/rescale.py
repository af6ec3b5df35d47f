"""Outputs in the targets' own unit."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Rescale(nn.Module):
    """Last layer of a model that predicts numbers: values of about mean 0 and variance 1 to `mean + std * value`.

    The layers before it work with numbers of a good size for training, and everything that is done with the model
    (loss, metrics, predictions, exported files) has the targets' own unit; data need not be scaled, nor scaled back.
    Both numbers are buffers, so they are in every checkpoint. Computed in float32 at least, whatever autocast does.

    Args:
        mean: of the training targets.
        std: their standard deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, values: Tensor) -> Tensor:
        return self.mean + self.std * values.to(torch.promote_types(values.dtype, self.mean.dtype))
