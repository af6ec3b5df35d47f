"""The vision transformer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flambeau.errors import UsageError
from flambeau.models import ViT


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        ({"width": 192, "num_layers": 12, "num_heads": 3}, 5_717_416),
        ({"width": 384, "num_layers": 12, "num_heads": 6}, 22_050_664),
        ({"width": 768, "num_layers": 12, "num_heads": 12}, 86_567_656),
    ],
    ids=["ViT-Ti/16", "ViT-S/16", "ViT-B/16"],
)
def test_it_has_as_many_parameters_as_published(arguments: dict[str, Any], parameters: int) -> None:
    """The counts that timm and torchvision state for images of 224 x 224 and 1000 classes."""
    with torch.device("meta"):
        model = ViT(1000, 3, image_size=224, patch_size=16, **arguments)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_patches_are_told_apart_by_their_places() -> None:
    """Moving a patch changes the output; without places it would not."""
    torch.manual_seed(0)
    model = ViT(image_size=8, width=16, num_heads=2, num_layers=2)
    torch.nn.init.normal_(model.head.weight)
    image = torch.zeros(1, 1, 8, 8)
    image[..., :4, :4] = 1.0
    moved = image.flip(-1)
    assert (model(image) - model(moved)).abs().max() > 1e-4
    torch.nn.init.zeros_(model.places)
    torch.testing.assert_close(model(image), model(moved))


def test_it_begins_without_a_preference() -> None:
    """All logits are 0."""
    assert not ViT(image_size=8)(torch.randn(2, 1, 8, 8)).any()


def test_sizes_that_do_not_fit_are_told() -> None:
    with pytest.raises(UsageError, match="30 is no multiple of patch_size, 4"):
        ViT(image_size=30)
    with pytest.raises(UsageError, match="64 does not divide into 5 heads"):
        ViT(num_heads=5)
    with pytest.raises(ValueError, match=r"images of \(8, 4\) pixels"):
        ViT(image_size=8)(torch.zeros(1, 1, 8, 4))
