"""What the callback `sample_images` sends to the trackers."""

from __future__ import annotations

from typing import Any

import torch
from support.tasks import make_trainer
from torch import nn
from torch.utils.data import TensorDataset

from flambeau.callbacks import SampleImages


class Kept:
    """A tracker that keeps what it is sent."""

    def __init__(self) -> None:
        self.images: dict[str, torch.Tensor] = {}
        self.texts: dict[str, str] = {}
        self.steps: list[int] = []

    def log_image(self, tag: str, image: Any, step: int) -> None:
        self.images[tag] = image
        self.steps.append(step)

    def log_text(self, tag: str, text: str, step: int) -> None:
        self.texts[tag] = text

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


class Halve(nn.Module):
    """A model whose output is known: its input times a half; the weight is there to be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5), requires_grad=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.factor * images


class Classes(nn.Module):
    """Scores of 3 classes: a pixel's value is its class."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return -self.scale * (images - torch.arange(3.0).view(1, 3, 1, 1)).abs()


def shown(model: nn.Module, data: TensorDataset, criterion: nn.Module, **arguments: Any) -> Kept:
    """What is sent in a run whose weights do not move."""
    tracker = Kept()
    trainer = make_trainer(
        model, data, criterion, lambda m: torch.optim.SGD(m.parameters(), lr=0.0), epochs=2, val_data=data,
        callbacks=[SampleImages(**arguments)], trackers=[tracker],
    )  # fmt: skip
    trainer.fit()
    return tracker


def test_input_output_and_target_of_an_autoencoder_stand_side_by_side_on_one_scale() -> None:
    """That of the target: what lies outside is cut off, what is fainter stays fainter."""
    clean = torch.rand(10, 1, 4, 5)
    clean[:, 0, 0, :2] = torch.tensor([0.0, 1.0])
    noisy = clean + 0.3 * torch.randn(clean.shape)
    tracker = shown(Halve(), TensorDataset(noisy, clean), nn.MSELoss(), count=6)
    assert tracker.images.keys() == {"val/input_output_target"}
    pictures = tracker.images["val/input_output_target"]
    assert pictures.shape == (6, 1, 4, 5 + 1 + 5 + 1 + 5)
    torch.testing.assert_close(pictures[..., :5], noisy[:6].clamp(0, 1))
    torch.testing.assert_close(pictures[..., 6:11], (noisy[:6] / 2).clamp(0, 1))
    torch.testing.assert_close(pictures[..., 12:], clean[:6])


def test_of_a_segmentation_the_classes_are_shades() -> None:
    """From black to white; a target that is no class is black."""
    masks = torch.randint(3, (8, 4, 4))
    images = masks[:, None].float()
    masks[:, 0] = 255
    tracker = shown(Classes(), TensorDataset(images, masks), nn.CrossEntropyLoss(ignore_index=255), count=8)
    pictures = tracker.images["val/input_output_target"]
    torch.testing.assert_close(pictures[..., 5:9], images / 2)
    torch.testing.assert_close(pictures[..., 1:, 10:], images[..., 1:, :] / 2)
    assert (pictures[..., 0, 10:] == 0).all()


def test_of_a_classification_the_inputs_are_shown_and_the_classes_written() -> None:
    images = torch.rand(9, 3, 2, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    tracker = shown(model, TensorDataset(images, torch.arange(9) % 4), nn.CrossEntropyLoss(), count=5, every=2)
    assert tracker.images.keys() == {"val/inputs"}
    assert tracker.images["val/inputs"].shape == (5, 3, 2, 2)
    assert len(tracker.texts["val/predicted"].split(", ")) == 5
    assert len(tracker.steps) == 1  # of two validations


def test_inputs_that_are_no_images_are_left_alone() -> None:
    data = TensorDataset(torch.randn(8, 4), torch.arange(8) % 3)
    assert not shown(nn.Linear(4, 3), data, nn.CrossEntropyLoss()).images
