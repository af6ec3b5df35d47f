"""Drawn shapes on a noisy background, with a mask that says which pixel is of what: data for segmentation."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Interval

from flambeau.data.in_memory import ArrayDataset
from flambeau.data.module import DataModule
from flambeau.data.transforms import RandomFlipWithMask
from flambeau.registry import register
from flambeau.runtime.seeds import derive

Drawing = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


@register.data("shapes")
class Shapes(DataModule):
    """Circles, squares and triangles on a noisy background, and the class of each pixel.

    Image i of a split is a function of (seed, split, i) alone; all are drawn at the start and kept in memory.

    Args:
        image_size: side of the images.
        train_size: training images.
        val_size: validation images.
        test_size: test images.
        max_shapes: each image has 1 to this many shapes; later ones cover earlier ones.
        num_shapes: kinds of shapes: 1 draws circles, 2 squares too, 3 triangles too.
        noise: standard deviation of the noise on each pixel, where the background is about 0 and shapes are 0.4 to 1.
        augment: mirror training images and masks, together, at random.
        seed: what the images are functions of.

    Images are float32 (1, image_size, image_size), masks int64 (image_size, image_size): 0 background, 1 circle,
    2 square, 3 triangle.
    """

    num_classes: int
    in_channels: int = 1
    image_size: int
    input_shape: tuple[int, int, int]

    def __init__(
        self,
        image_size: Annotated[int, Ge(16)] = 32,
        train_size: Annotated[int, Ge(1)] = 400,
        val_size: Annotated[int, Ge(0)] = 100,
        test_size: Annotated[int, Ge(0)] = 100,
        max_shapes: Annotated[int, Ge(1)] = 3,
        num_shapes: Annotated[int, Interval(ge=1, le=3)] = 3,
        noise: Annotated[float, Ge(0)] = 0.1,
        augment: bool = False,
        seed: int = 0,
    ) -> None:
        self.num_classes = num_shapes + 1
        self.image_size = image_size
        self.input_shape = (1, image_size, image_size)

        def drawn(name: str, size: int) -> ArrayDataset | None:
            if not size:
                return None
            images = np.empty((size, 1, image_size, image_size), np.float32)
            masks = np.empty((size, image_size, image_size), np.int64)
            for index in range(size):
                rng = np.random.default_rng(derive(seed, "shapes", name, index))
                images[index, 0], masks[index] = _draw(rng, image_size, max_shapes, num_shapes, noise)
            return ArrayDataset(images, masks)

        self.train, self.val, self.test = drawn("train", train_size), drawn("val", val_size), drawn("test", test_size)
        if augment:
            self.train_transform = RandomFlipWithMask()


def _draw(rng: np.random.Generator, size: int, max_shapes: int, num_shapes: int, noise: float) -> Drawing:
    """An image and its mask."""
    image, mask = np.zeros((size, size), np.float32), np.zeros((size, size), np.int64)
    y, x = np.mgrid[:size, :size] + 0.5
    for _ in range(rng.integers(1, max_shapes + 1)):
        kind = int(rng.integers(1, num_shapes + 1))
        radius = rng.uniform(size / 8, size / 4)
        across, down = x - rng.uniform(radius, size - radius), y - rng.uniform(radius, size - radius)
        if kind == 1:
            inside = across**2 + down**2 <= radius**2
        elif kind == 2:
            inside = np.maximum(abs(across), abs(down)) <= radius
        else:  # the point upwards: as wide at the bottom as it is high
            inside = (down <= radius) & (abs(across) <= (down + radius) / 2)
        image[inside], mask[inside] = rng.uniform(0.4, 1.0), kind
    image += (noise * rng.standard_normal((size, size))).astype(np.float32)
    return image, mask
