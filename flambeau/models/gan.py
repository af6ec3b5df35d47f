"""A generator and a discriminator of small images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from flambeau.registry import register


@register.model("gan")
class GAN(nn.Module):
    """Two perceptrons that train each other (Goodfellow et al., 2014): noise (N, latent_size) to images.

    The submodule `generator` has batch norms and ReLUs, `discriminator` leaky ReLUs of slope 0.2, as Radford et al.
    (2016) advise; the last layer of each is linear. Images are (N, *input_shape); of each, `discriminator` gives one
    logit, (N, 1): of its being real.

    Args:
        input_shape: of an image.
        latent_size: numbers of noise that an image is made of.
        hidden_size: width of the two hidden layers of each.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 8, 8),
        latent_size: Annotated[int, Ge(1)] = 32,
        hidden_size: Annotated[int, Ge(1)] = 256,
    ) -> None:
        super().__init__()
        self.latent_size = latent_size
        pixels = math.prod(input_shape)
        self.generator = nn.Sequential(
            nn.Linear(latent_size, hidden_size, bias=False),
            nn.BatchNorm1d(hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size, bias=False),
            nn.BatchNorm1d(hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, pixels),
            nn.Unflatten(1, tuple(input_shape)),
        )
        self.discriminator = nn.Sequential(
            nn.Flatten(),
            nn.Linear(pixels, hidden_size),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden_size, hidden_size),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden_size, 1),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Images of noise."""
        images: Tensor = self.generator(inputs)
        return images
