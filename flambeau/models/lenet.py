"""LeNet-5, the convolutional network of LeCun et al. (1998), for images from 8 x 8 upwards."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor, nn

from flambeau.registry import register


@register.model("lenet")
class LeNet(nn.Module):
    """LeNet-5 (LeCun et al., 1998): images (N, C, H, W) to logits (N, num_classes).

    After "Gradient-based learning applied to document recognition", fig. 2, with what is usual today in place
    of scaled tanh, trainable subsampling and the sparse connections of C3: ReLU, max pooling and full ones.
    Maps by layer, for the three usual sizes (H = W = `image_size`):

        image            32 x 32   28 x 28   8 x 8
        C1, 6 maps       28 x 28   28 x 28   8 x 8     5 x 5 filters, padded by 2 below 32 x 32
        S2               14 x 14   14 x 14   4 x 4     2 x 2 maximum
        C3, 16 maps      10 x 10   10 x 10   4 x 4     5 x 5 filters, padded by 2 below 14 x 14
        S4                 5 x 5     5 x 5   2 x 2     2 x 2 maximum
        C5, F6, output   120, `hidden_size`, `num_classes`

    Args:
        num_classes: outputs per image.
        in_channels: channels of the images.
        width: factor on the 6, 16 and 120 maps of C1, C3 and C5.
        hidden_size: units of F6.
        image_size: height and width of the images, 8 or more.
    """

    def __init__(
        self,
        num_classes: Annotated[int, Ge(1)] = 10,
        in_channels: Annotated[int, Ge(1)] = 1,
        width: Annotated[float, Gt(0)] = 1.0,
        hidden_size: Annotated[int, Ge(1)] = 84,
        image_size: Annotated[int, Ge(8)] = 32,
    ) -> None:
        super().__init__()
        c1, c3, c5 = (max(1, round(width * maps)) for maps in (6, 16, 120))
        c1_padding = 2 if image_size < 32 else 0
        s2 = (image_size + 2 * c1_padding - 4) // 2
        c3_padding = 2 if s2 < 14 else 0
        s4 = (s2 + 2 * c3_padding - 4) // 2
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, c1, kernel_size=5, padding=c1_padding),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(c1, c3, kernel_size=5, padding=c3_padding),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(c3 * s4 * s4, c5),
            nn.ReLU(inplace=True),
            nn.Linear(c5, hidden_size),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_size, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images))
        return logits
