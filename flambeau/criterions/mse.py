"""Mean squared error."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt
from torch import Tensor, nn

from flambeau.registry import register


@register.criterion("mse")
class MSE(nn.MSELoss):
    """Mean over all elements of ((outputs - targets) / scale)²; both of one shape.

    Shapes that differ are an error: torch would broadcast (N, 1) and (N,) to (N, N) and train on nonsense.

    Args:
        scale: what a large difference is, in the targets' unit: with the targets' standard deviation the loss is about
            1 at the start, whatever they are measured in.
    """

    def __init__(self, scale: Annotated[float, Gt(0)] = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.shape != targets.shape:
            raise ValueError(
                f"outputs of shape {tuple(outputs.shape)} do not fit targets of shape {tuple(targets.shape)}"
            )
        if not targets.is_floating_point():
            targets = targets.to(outputs.dtype)
        if self.scale != 1.0:  # before squaring, which half precision has no room for
            outputs, targets = outputs / self.scale, targets / self.scale
        return super().forward(outputs, targets)
