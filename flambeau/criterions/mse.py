"""Mean squared error."""

from __future__ import annotations

from torch import Tensor, nn

from flambeau.registry import register


@register.criterion("mse")
class MSE(nn.MSELoss):
    """Mean over all elements of (outputs - targets)²; both of one shape.

    Shapes that differ are an error: torch would broadcast (N, 1) and (N,) to (N, N) and train on nonsense.
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.shape != targets.shape:
            raise ValueError(
                f"outputs of shape {tuple(outputs.shape)} do not fit targets of shape {tuple(targets.shape)}"
            )
        if not targets.is_floating_point():
            targets = targets.to(outputs.dtype)
        return super().forward(outputs, targets)
