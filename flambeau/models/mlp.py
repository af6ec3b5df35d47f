"""A multilayer perceptron."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn

from flambeau.models.rescale import Rescale
from flambeau.registry import register


@register.model("mlp")
class MLP(nn.Module):
    """Multilayer perceptron: inputs (N, ...) of `in_features` numbers each to logits, or numbers, (N, num_classes).

    Args:
        num_classes: outputs per sample: classes, or numbers to be predicted.
        in_features: numbers per sample, over all its dimensions (64 for an image of 1 x 8 x 8).
        hidden_size: units of each hidden layer.
        num_layers: hidden layers, each a linear map, ReLU and dropout; 0 makes the model linear.
        dropout: probability that a hidden unit is dropped in training.
        output_mean: where numbers are predicted, the mean of the training targets (`${data.target_mean}`): outputs then
            are `output_mean + output_scale * (what the last layer gives)`, in the targets' own unit.
        output_scale: their standard deviation (`${data.target_std}`).
    """

    def __init__(
        self,
        num_classes: Annotated[int, Ge(1)] = 10,
        in_features: Annotated[int, Ge(1)] = 64,
        hidden_size: Annotated[int, Ge(1)] = 256,
        num_layers: Annotated[int, Ge(0)] = 2,
        dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
        output_mean: float = 0.0,
        output_scale: Annotated[float, Gt(0)] = 1.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        width = in_features
        for _ in range(num_layers):
            layers += [nn.Linear(width, hidden_size), nn.ReLU(inplace=True)]
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            width = hidden_size
        layers.append(nn.Linear(width, num_classes))
        if (output_mean, output_scale) != (0.0, 1.0):
            layers.append(Rescale(output_mean, output_scale))
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.layers(inputs)
        return logits
