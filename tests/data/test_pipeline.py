"""Transforms that a configuration names: on which part of a sample, in which order, and the same after a resume."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from flambeau.data import Batch
from flambeau.data.image_transforms import RandomFlip
from flambeau.data.mixing import Mixup
from flambeau.data.pipeline import BatchTransforms, SampleTransforms
from flambeau.errors import UsageError


def plus_one(value: Any) -> Any:
    return value + 1


def doubled(value: Any) -> Any:
    return value * 2


def swapped(sample: Any) -> Any:
    return sample[1], sample[0]


def noisy(value: torch.Tensor) -> torch.Tensor:
    return value + torch.randn(value.shape) + float(np.random.randn())


def batch_of(inputs: Any, targets: Any = None, *, first: int = 0, key: int = 4) -> Batch:
    size = len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)
    return Batch(inputs, targets, np.arange(size) + first, size, key=key)


def test_transforms_follow_each_other_in_their_order_on_the_input() -> None:
    """After what the data module brings; the target is left alone."""
    chain = SampleTransforms({"a": (plus_one, None), "b": (doubled, None)}, before=lambda s: (s[0] * 10, s[1]))
    assert chain((1, 7)) == (22, 7)
    assert SampleTransforms({"b": (doubled, None), "a": (plus_one, None)})((1, 7)) == (3, 7)


def test_on_says_what_a_transform_gets() -> None:
    """The targets, an entry, or the sample as the dataset gives it; the rest stays, and is not written to."""
    assert SampleTransforms({"a": (plus_one, "targets")})((1, 7)) == (1, 8)
    assert SampleTransforms({"a": (swapped, "sample")})((1, 7)) == (7, 1)
    sample = {"inputs": {"image": 1, "depth": {"near": 5}}, "targets": 3}
    changed = SampleTransforms({"a": (plus_one, "inputs.image"), "b": (doubled, "inputs.depth.near")})(sample)
    assert changed == {"inputs": {"image": 2, "depth": {"near": 10}}, "targets": 3}
    assert sample == {"inputs": {"image": 1, "depth": {"near": 5}}, "targets": 3}


def test_a_transform_can_say_itself_what_it_gets() -> None:
    """By an attribute `on`; the configuration's `on` wins."""

    class Both:
        on = "sample"

        def __call__(self, sample: Any) -> Any:
            return swapped(sample)

    assert SampleTransforms({"a": (Both(), None)})((1, 7)) == (7, 1)


@pytest.mark.parametrize(
    ("on", "message"),
    [
        ("inputs.imgae", "no entry 'imgae' in inputs"),
        ("inputs.image.x", "that is no dict"),
        (None, "on: inputs.image"),
        ("image", "'image' is no part of a sample"),
        ("sample.x", "is no part of a sample"),
    ],
)
def test_a_part_that_there_is_not_is_named(on: Any, message: str) -> None:
    """With what there is; an input of several entries is not changed as a whole by chance."""
    with pytest.raises(UsageError, match=message):
        SampleTransforms({"flip": (plus_one, on)})({"inputs": {"image": 1}, "targets": 2})


def test_a_transform_of_batches_is_no_transform_of_samples() -> None:
    """Mixing needs several."""
    with pytest.raises(UsageError, match="put it under train_batch_transforms"):
        SampleTransforms({"mixup": (Mixup(3), None)})


def test_two_of_a_kind_draw_numbers_of_their_own() -> None:
    """Two flips of the same images do not always undo each other."""
    images = torch.rand(64, 1, 4, 4)
    flips = BatchTransforms({"a": (RandomFlip(), None), "b": (RandomFlip(), None)})
    assert not torch.equal(flips(batch_of(images)).inputs, images)
    assert torch.equal(flips(batch_of(images)).inputs, flips(batch_of(images)).inputs)
    assert not torch.equal(flips(batch_of(images)).inputs, flips(batch_of(images, key=5)).inputs)


def test_one_entry_of_a_batch_is_transformed() -> None:
    """And mixing changes the targets with it."""
    batch = batch_of({"image": torch.rand(4, 1, 2, 2), "name": list("abcd")}, torch.tensor([0, 1, 0, 1]))
    mixed = BatchTransforms({"m": (Mixup(2), "inputs.image")})(batch)
    assert mixed.inputs["name"] == list("abcd")
    assert not torch.equal(mixed.inputs["image"], batch.inputs["image"])
    assert mixed.targets.shape == (4, 2)
    assert BatchTransforms({"t": (plus_one, "targets")})(batch).targets.tolist() == [1, 2, 1, 2]


def test_a_foreign_random_transform_is_a_function_of_the_batch() -> None:
    """Not of what ran before; the global generators stay where they were."""
    chain = BatchTransforms({"noise": (noisy, None)})
    torch.manual_seed(1)
    first = chain(batch_of(torch.zeros(3)))
    torch.manual_seed(2)
    drawn = torch.rand(3)
    torch.manual_seed(2)
    second = chain(batch_of(torch.zeros(3)))
    assert torch.equal(first.inputs, second.inputs)
    assert torch.equal(torch.rand(3), drawn)
    assert not torch.equal(first.inputs, chain(batch_of(torch.zeros(3), first=9)).inputs)
    assert not torch.equal(first.inputs, chain(batch_of(torch.zeros(3), key=9)).inputs)


def test_a_pair_is_what_a_transform_of_samples_gets_of_a_batch() -> None:
    """As torchvision's CutMix takes it."""
    changed = BatchTransforms({"swap": (swapped, "sample")})(batch_of(torch.zeros(2), torch.ones(2)))
    assert changed.inputs.tolist() == [1, 1] and changed.targets.tolist() == [0, 0]


def test_modules_are_transforms_of_batches() -> None:
    """As augmentation libraries write them; random ones too, and no gradient is kept of them."""
    chain = BatchTransforms({"drop": (torch.nn.Dropout(0.5), None), "norm": (torch.nn.LayerNorm(6), None)})
    first, second = (chain(batch_of(torch.ones(4, 6))).inputs for _ in range(2))
    assert torch.equal(first, second) and not first.requires_grad
    assert len(first.unique()) > 1
    assert not torch.equal(first, chain(batch_of(torch.ones(4, 6), key=8)).inputs)
