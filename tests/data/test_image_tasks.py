"""Data whose targets are images: noisy digits to be cleaned, drawn shapes to be segmented."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from flambeau.config.sections import LoaderSettings
from flambeau.data import EvalFeeder, Feeder
from flambeau.data.digits import Digits
from flambeau.data.noisy_digits import NoisyDigits
from flambeau.data.shapes import Shapes
from flambeau.data.transforms import RandomFlipWithMask


def one_epoch(data: Any, epoch: int = 0, workers: int = 0) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Input and target of each training sample of an epoch, by index."""
    settings = LoaderSettings(workers=workers)
    feeder = Feeder(data.train, settings=settings, batch_size=16, seed=5, transform=data.train_transform)
    steps, found = feeder.steps_per_epoch or 0, {}
    for _, batch in zip(range(steps), feeder.batches(epoch * steps), strict=False):
        found |= {int(index): (x, y) for index, x, y in zip(batch.ids, batch.inputs, batch.targets, strict=True)}
    feeder.close()
    return found


def evaluated(part: Any) -> tuple[torch.Tensor, torch.Tensor]:
    batch = next(EvalFeeder(part, batch_size=10_000).batches())
    return batch.inputs, batch.targets


class TestNoisyDigits:
    def test_targets_are_the_clean_digits_and_inputs_have_noise_of_the_given_size(self) -> None:
        data = NoisyDigits(noise=0.25, image_size=8, seed=2)
        inputs, targets = evaluated(data.train)
        clean = Digits(image_size=8, seed=2)
        torch.testing.assert_close(targets, clean.train.inputs * clean.std + clean.mean)
        assert (inputs - targets).std().item() == pytest.approx(0.25, rel=0.01)
        assert abs((inputs - targets).mean().item()) < 0.005
        assert -10 * math.log10((inputs - targets).square().mean()) == pytest.approx(12.04, abs=0.1)

    def test_the_noise_of_training_is_a_function_of_seed_epoch_and_index(self) -> None:
        """Another in each epoch, the same whoever draws it and however often."""
        data = NoisyDigits(image_size=8)
        data.train.images = data.train.images[:40]
        first, again, next_epoch = one_epoch(data), one_epoch(data, workers=1), one_epoch(data, epoch=1)
        for index, (image, target) in first.items():
            assert torch.equal(image, again[index][0])
            assert not torch.equal(image, next_epoch[index][0])
            assert torch.equal(target, next_epoch[index][1])

    def test_the_noise_of_an_evaluation_is_always_the_same(self) -> None:
        """So that scores can be compared."""
        data = NoisyDigits(image_size=8)
        assert torch.equal(evaluated(data.val)[0], evaluated(data.val)[0])
        inputs, targets = evaluated(data.val)
        noise = inputs - targets
        assert not torch.equal(noise[0], noise[1])

    def test_without_noise_the_input_is_the_target(self) -> None:
        inputs, targets = evaluated(NoisyDigits(noise=0.0).test)
        assert torch.equal(inputs, targets)
        assert inputs.shape[1:] == (1, 16, 16)


class TestShapes:
    def test_images_and_masks_have_the_sizes_and_counts_asked_for(self) -> None:
        data = Shapes(image_size=24, train_size=11, val_size=5, test_size=0, num_shapes=2)
        images, masks = evaluated(data.train)
        assert images.shape == (11, 1, 24, 24) and images.dtype is torch.float32
        assert masks.shape == (11, 24, 24) and masks.dtype is torch.int64
        assert len(data.val) == 5 and data.test is None
        assert (data.num_classes, data.in_channels, data.input_shape) == (3, 1, (1, 24, 24))
        assert set(masks.unique().tolist()) == {0, 1, 2}

    def test_without_noise_the_mask_is_where_the_image_is_not_empty(self) -> None:
        images, masks = evaluated(Shapes(noise=0.0, train_size=30).train)
        assert torch.equal(images[:, 0] > 0, masks > 0)
        assert images[images > 0].min() >= 0.4

    @pytest.mark.parametrize(("kind", "filled"), [(1, math.pi / 4), (2, 1.0), (3, 0.5)])
    def test_a_shape_fills_its_box_as_it_should(self, kind: int, filled: float) -> None:
        """A circle by pi / 4, a square wholly, a triangle by half."""
        _, masks = evaluated(Shapes(image_size=64, train_size=60, max_shapes=1).train)
        shares = []
        for mask in masks:
            if (mask == kind).any():
                where = (mask == kind).nonzero()
                height, width = (where.max(0).values - where.min(0).values + 1).tolist()
                shares.append(len(where) / (height * width))
        assert shares
        assert sum(shares) / len(shares) == pytest.approx(filled, abs=0.05)

    def test_an_image_is_a_function_of_seed_split_and_index(self) -> None:
        """More images do not change the ones before them."""
        few, many, other = Shapes(train_size=5), Shapes(train_size=9), Shapes(train_size=5, seed=1)
        assert torch.equal(few.train.inputs, many.train.inputs[:5])
        assert not torch.equal(few.train.inputs, other.train.inputs)
        assert not torch.equal(few.train.inputs, few.val.inputs[:5])

    def test_image_and_mask_are_mirrored_together(self) -> None:
        """Where the image is not empty, there is the mask, in every epoch; and all four ways occur."""
        data = Shapes(noise=0.0, train_size=40, val_size=0, test_size=0, augment=True)
        ways = set()
        for epoch in (0, 1):
            for index, (image, mask) in one_epoch(data, epoch).items():
                assert torch.equal(image[0] > 0, mask > 0)
                original = data.train.targets[index]
                ways |= {dims for dims in ((), (0,), (1,), (0, 1)) if torch.equal(original.flip(dims), mask)}
        assert len(ways) == 4
        assert data.eval_transform is None

    def test_a_mirrored_sample_keeps_its_shape(self) -> None:
        image, mask = RandomFlipWithMask()((torch.arange(24.0).view(2, 3, 4), torch.arange(12).view(3, 4)))
        assert image.shape == (2, 3, 4) and mask.shape == (3, 4)
        assert torch.equal(image[0], mask.float())
