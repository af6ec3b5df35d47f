"""The transforms of images that need nothing but torch: exact, alike on samples and batches, and without traces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from flambeau.data import Batch
from flambeau.data.image_transforms import (
    CenterCrop,
    GaussianNoise,
    Normalize,
    RandomCrop,
    RandomErasing,
    RandomFlip,
    RandomRotation,
    RandomShift,
    Resize,
)
from flambeau.data.mixing import CutMix, Mixup
from flambeau.errors import UsageError

ALL = [
    RandomFlip(),
    RandomFlip(0.5, "vertical"),
    RandomShift(2, fill=1.0),
    RandomCrop(5, padding=1),
    RandomCrop([4, 3]),
    CenterCrop(4),
    Resize([9, 5]),
    RandomRotation(30),
    RandomErasing(),
    GaussianNoise(0.1),
    Normalize([0.1, 0.2, 0.3], [1.0, 2.0, 3.0]),
    Normalize([0.5], [0.5]),
]


def images(count: int = 8, *, height: int = 8, width: int = 6, dtype: Any = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(count, 3, height, width, generator=generator)
    return values if dtype.is_floating_point else (values * 255).to(dtype)


def batch_of(inputs: torch.Tensor, targets: Any = None, *, start: int = 0, key: int = 3) -> Batch:
    return Batch(inputs, targets, np.arange(len(inputs)) + 100 + start, len(inputs), start=start, key=key)


@pytest.mark.parametrize("transform", ALL, ids=lambda transform: type(transform).__name__)
def test_what_is_given_stays_as_it_was(transform: Any) -> None:
    """The array that a dataset holds is not augmented over and over."""
    inputs = images()
    before = inputs.clone()
    changed = transform.on_batch(batch_of(inputs)).inputs
    torch.manual_seed(0)
    single = transform(inputs[0])
    changed.add_(1)
    single.add_(1)
    assert torch.equal(inputs, before)


@pytest.mark.parametrize("transform", ALL, ids=lambda transform: type(transform).__name__)
def test_a_batch_in_parts_is_changed_as_a_whole(transform: Any) -> None:
    """The same bits for a sample, whatever is beside it."""
    whole = transform.on_batch(batch_of(images())).inputs
    parts = [transform.on_batch(part).inputs for part in batch_of(images()).split(3)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(
    "transform",
    [item for item in ALL if hasattr(item, "change") and type(item) is not GaussianNoise],
    ids=lambda t: type(t).__name__,
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_samples_and_batches_are_changed_alike_by_the_same_numbers(
    transform: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One transform serves both sections; bytes stay bytes."""
    batch = batch_of(images(dtype=dtype))
    whole = transform.on_batch(batch).inputs
    assert whole.dtype is dtype
    numbers = batch.random(transform.draws)
    for row, image in enumerate(batch.inputs):
        monkeypatch.setattr(torch, "rand", lambda *shape, row=row: numbers[row : row + 1])
        assert torch.equal(transform(image), whole[row])


def test_a_flip_mirrors_the_images_whose_number_is_low() -> None:
    """Left and right, or top and bottom."""
    inputs = images(1).expand(2, -1, -1, -1)
    numbers = torch.tensor([[0.1], [0.9]])
    assert torch.equal(RandomFlip(0.5).change(inputs, numbers), torch.stack([inputs[0].flip(-1), inputs[1]]))
    vertical = RandomFlip(0.5, "vertical").change(inputs, numbers)
    assert torch.equal(vertical, torch.stack([inputs[0].flip(-2), inputs[1]]))


def test_a_shift_reaches_every_place_and_no_other() -> None:
    """Of a reach of one pixel there are nine; what comes in is the fill."""
    image = images(1)
    grid = (torch.cartesian_prod(torch.arange(3), torch.arange(3)) + 0.5) / 3
    found = RandomShift(1, fill=7.0).change(image.expand(9, -1, -1, -1), grid)
    padded = torch.nn.functional.pad(image[0], (1, 1, 1, 1), value=7.0)
    expected = [padded[:, y : y + 8, x : x + 6] for y in range(3) for x in range(3)]
    assert torch.equal(found, torch.stack(expected))


def test_a_crop_and_a_resized_image_have_the_size_asked_for() -> None:
    """And a crop is a window of the image."""
    inputs = images()
    cropped = RandomCrop([4, 3]).change(inputs, torch.tensor([[0.0, 0.99]]).expand(8, 2))
    assert torch.equal(cropped, inputs[..., 0:4, 3:6])
    assert torch.equal(CenterCrop(4).change(inputs, torch.empty(8, 0)), inputs[..., 2:6, 1:5])
    assert Resize([16, 5]).change(inputs, torch.empty(8, 0)).shape == (8, 3, 16, 5)
    with pytest.raises(UsageError, match="does not fit"):
        RandomCrop(9)(inputs[0])


def test_a_rotation_turns_about_the_centre() -> None:
    """By 90 degrees it is torch's rot90; by none it is the image."""
    square = images(2, height=7, width=7)
    turned = RandomRotation(90).change(square, torch.tensor([[1.0], [0.5]]))
    directions = [torch.rot90(square[0], k, (-2, -1)) for k in (1, 3)]
    assert any(torch.allclose(turned[0], direction, atol=1e-5) for direction in directions)
    assert torch.allclose(turned[1], square[1], atol=1e-6)
    filled = RandomRotation(45, fill=9.0).change(square, torch.tensor([[1.0], [1.0]]))
    assert torch.allclose(filled[0, :, 0, 0], torch.tensor(9.0))


def test_an_erased_rectangle_has_the_area_asked_for_and_lies_within() -> None:
    """Of every image, as p is 1; the rest of it is untouched."""
    inputs = images(2000, height=20, width=20)
    erased = RandomErasing(p=1.0, area=(0.16, 0.16), ratio=(1.0, 1.0), fill=5.0).on_batch(batch_of(inputs)).inputs
    gone = (erased == 5.0).all(dim=1)
    assert (gone.flatten(1).sum(1) == 64).all()
    assert torch.equal(erased[~gone[:, None].expand_as(erased)], inputs[~gone[:, None].expand_as(inputs)])
    assert gone[:, 0, 0].any() and gone[:, -1, -1].any() and gone[:, 10, 10].any()
    with pytest.raises(UsageError, match="exchange them"):
        RandomErasing(area=(0.5, 0.1))


def test_noise_wants_floats() -> None:
    """And says where they are to be had."""
    with pytest.raises(UsageError, match="train_batch_transforms"):
        GaussianNoise(1.0)(images(dtype=torch.uint8)[0])


def test_normalised_bytes_are_as_torchvision_has_them() -> None:
    """Values in 0..1, less the mean, by the standard deviation."""
    raw = images(dtype=torch.uint8)
    found = Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]).on_batch(batch_of(raw)).inputs
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    assert torch.allclose(found, (raw / 255 - mean) / std, atol=1e-6)
    with pytest.raises(UsageError, match="2 channels"):
        Normalize([0.1, 0.2], [1.0, 1.0])(raw[0])


@pytest.mark.parametrize("transform", [Mixup(4), CutMix(4)], ids=["mixup", "cutmix"])
def test_mixed_samples_are_of_pairs_and_targets_say_how_much(transform: Any) -> None:
    """What is left of a sample in its input is its share in its target."""
    labels = torch.arange(6) % 4
    values = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 16, 16).contiguous()
    mixed = transform.on_batch(batch_of(values, labels))
    assert torch.allclose(mixed.targets.sum(1), torch.ones(6))
    for row in range(6):
        share = mixed.targets[row, labels[row]].item()
        mean = mixed.inputs[row].mean().item()
        assert mean == pytest.approx(share * row + (1 - share) * (row ^ 1), abs=1e-4)
    assert len(set(mixed.targets.max(1).values.tolist())) > 3


@pytest.mark.parametrize("transform", [Mixup(3), CutMix(3)], ids=["mixup", "cutmix"])
def test_mixing_is_the_same_in_several_processes(transform: Any) -> None:
    """Where a share begins and ends between pairs; the two samples of a pair that is cut stay as they are."""
    inputs, labels = images(12), torch.arange(12) % 3
    whole = transform.on_batch(batch_of(inputs, labels))
    for ranks in (2, 3, 6):
        parts = [transform.on_batch(part) for part in batch_of(inputs, labels).split(ranks)]
        assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
        assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    first, second, *_ = (transform.on_batch(part) for part in batch_of(inputs, labels).split(4))
    assert torch.equal(first.inputs[:2], whole.inputs[:2]) and torch.equal(second.inputs[1:], whole.inputs[4:6])
    assert torch.equal(torch.stack([first.inputs[2], second.inputs[0]]), inputs[2:4])
    assert first.targets[2].tolist() == [0, 0, 1]


def test_mixing_refuses_targets_that_are_no_classes() -> None:
    """And classes that there are not."""
    with pytest.raises(UsageError, match="class indices"):
        Mixup(3).on_batch(batch_of(images(2), torch.zeros(2)))
    with pytest.raises(UsageError, match="outside of 3 classes"):
        Mixup(3).on_batch(batch_of(images(2), torch.tensor([0, 3])))
    with pytest.raises(UsageError, match="floating-point"):
        Mixup(3).on_batch(batch_of(images(2, dtype=torch.uint8), torch.tensor([0, 1])))


@pytest.mark.parametrize("transform", [RandomFlip(), RandomCrop(2), Resize(4)], ids=lambda t: type(t).__name__)
def test_what_is_no_image_is_named(transform: Any) -> None:
    """Instead of an error of torch's deep below."""
    for wrong in (torch.zeros(3), "path", {"image": images(1)[0]}):
        with pytest.raises(UsageError, match="takes images as tensors"):
            transform(wrong)
