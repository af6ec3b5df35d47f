"""Transforms of images that need nothing but torch: of a sample, or of a whole batch on its device.

Each works in both places with the same result for the same random numbers: in `train_transforms` on an image (C, H, W)
with numbers from torch's generator, which is seeded for each sample; in `train_batch_transforms` on images
(N, C, H, W), with each sample's own numbers (`Batch.random`). None writes to what it is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, pad

from flambeau.data.batch import Batch
from flambeau.errors import UsageError
from flambeau.registry import register

_STEPS = 1 << 24
"""Random numbers of float32 are multiples of one over it."""


class ImageTransform:
    """What a transform of images needs: `draws` random numbers an image, and `change`."""

    draws: int = 0
    """Numbers from [0, 1) that one image takes."""

    def change(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Images (N, ..., H, W) changed by `numbers` (N, draws); must not write to `images`."""
        raise NotImplementedError

    def __call__(self, image: Tensor) -> Tensor:
        """One image, (C, H, W) or (H, W)."""
        self._require_image(image, 2)
        return self.change(image[None], torch.rand(1, self.draws))[0]

    def on_batch(self, batch: Batch) -> Batch:
        """A batch of images (N, C, H, W) or (N, H, W)."""
        self._require_image(batch.inputs, 3)
        return batch.replace(inputs=self.change(batch.inputs, batch.random(self.draws)), targets=batch.targets)

    def _require_image(self, image: Any, dimensions: int) -> None:
        if isinstance(image, Tensor) and image.dim() >= dimensions:
            return
        found = f"shape {tuple(image.shape)}" if isinstance(image, Tensor) else f"a {type(image).__name__}"
        raise UsageError(
            f"{type(self).__name__} takes images as tensors (C, H, W), and was given {found}",
            remedy="say with `on` which part of the sample is the image, or turn it into a tensor before",
        )


@register.transform("random_flip")
class RandomFlip(ImageTransform):
    """Mirror the image.

    Args:
        p: probability.
        direction: `horizontal` exchanges left and right, `vertical` top and bottom.
    """

    draws = 1

    def __init__(
        self,
        p: Annotated[float, Interval(ge=0, le=1)] = 0.5,
        direction: Literal["horizontal", "vertical"] = "horizontal",
    ) -> None:
        self.p = p
        self.dimension = -1 if direction == "horizontal" else -2

    def change(self, images: Tensor, numbers: Tensor) -> Tensor:
        return torch.where(_each(numbers[:, 0] < self.p, images), images.flip(self.dimension), images)


@register.transform("random_shift")
class RandomShift(ImageTransform):
    """Move the image by up to `reach` pixels in each direction.

    Args:
        reach: greatest shift, in pixels.
        fill: what comes in, in the image's own units.
    """

    draws = 2

    def __init__(self, reach: Annotated[int, Ge(0)], fill: float = 0.0) -> None:
        self.reach = reach
        self.fill = fill

    def change(self, images: Tensor, numbers: Tensor) -> Tensor:
        padded = pad(images, (self.reach,) * 4, value=self.fill)
        return _windows(padded, numbers, images.shape[-2], images.shape[-1])


@register.transform("random_crop")
class RandomCrop(ImageTransform):
    """Cut a window out of the image, at a random place.

    Args:
        size: height and width of the window, or the side of a square.
        padding: pixels added on each side first.
        fill: of what is added, in the image's own units.
    """

    draws = 2

    def __init__(
        self,
        size: Annotated[int, Ge(1)] | Sequence[Annotated[int, Ge(1)]],
        padding: Annotated[int, Ge(0)] = 0,
        fill: float = 0.0,
    ) -> None:
        self.size = _pair(size, "random_crop.size")
        self.padding = padding
        self.fill = fill

    def change(self, images: Tensor, numbers: Tensor) -> Tensor:
        padded = pad(images, (self.padding,) * 4, value=self.fill) if self.padding else images
        if padded.shape[-2] < self.size[0] or padded.shape[-1] < self.size[1]:
            raise UsageError(
                f"random_crop: a window of {self.size} does not fit into {tuple(padded.shape[-2:])} pixels"
            )
        return _windows(padded, numbers, *self.size)


@register.transform("center_crop")
class CenterCrop(ImageTransform):
    """Cut the middle out of the image.

    Args:
        size: height and width of the window, or the side of a square.
    """

    def __init__(self, size: Annotated[int, Ge(1)] | Sequence[Annotated[int, Ge(1)]]) -> None:
        self.size = _pair(size, "center_crop.size")

    def change(self, images: Tensor, numbers: Tensor) -> Tensor:
        (height, width), (rows, columns) = images.shape[-2:], self.size
        if height < rows or width < columns:
            raise UsageError(f"center_crop: a window of {self.size} does not fit into {(height, width)} pixels")
        top, left = (height - rows) // 2, (width - columns) // 2
        return images[..., top : top + rows, left : left + columns].clone()


@register.transform("resize")
class Resize(ImageTransform):
    """Bring images to one size, by bilinear interpolation.

    Args:
        size: height and width.
        antialias: smooth before making smaller.

    Bytes are rounded to bytes.
    """

    def __init__(self, size: Annotated[int, Ge(1)] | Sequence[Annotated[int, Ge(1)]], antialias: bool = True) -> None:
        self.size = _pair(size, "resize.size")
        self.antialias = antialias

    def change(self, images: Tensor, numbers: Tensor) -> Tensor:
        def resized(planes: Tensor) -> Tensor:
            return interpolate(planes, self.size, mode="bilinear", antialias=self.antialias)

        return _on_planes(resized, images)


@register.transform("random_rotation")
class RandomRotation(ImageTransform):
    """Turn the image about its centre.

    Args:
        degrees: greatest angle, in both directions.
        fill: what comes in at the corners, in the image's own units.

    Bilinear interpolation; bytes are rounded to bytes.
    """

    draws = 1

    def __init__(self, degrees: Annotated[float, Interval(ge=0, le=180)], fill: float = 0.0) -> None:
        self.degrees = degrees
        self.fill = fill

    def change(self, images: Tensor, numbers: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        angles = (2 * numbers[:, 0] - 1) * math.radians(self.degrees)
        # In pixels from the centre, element by element: a matrix product's bits depend on the size of the batch.
        y = torch.arange(height, device=images.device)[:, None] - (height - 1) / 2
        x = torch.arange(width, device=images.device)[None, :] - (width - 1) / 2
        cosine, sine = torch.cos(angles)[:, None, None], torch.sin(angles)[:, None, None]
        from_x = (cosine * x - sine * y) * (2 / width)
        from_y = (sine * x + cosine * y) * (2 / height)
        grid = torch.stack([from_x, from_y], dim=-1)

        def turned(planes: Tensor) -> Tensor:
            sampled = grid_sample(planes - self.fill, grid.to(planes.dtype), align_corners=False)
            return sampled + self.fill

        return _on_planes(turned, images)


@register.transform("random_erasing")
class RandomErasing(ImageTransform):
    """Replace a rectangle of the image by one value (Zhong et al., "Random erasing data augmentation", 2017).

    Args:
        p: probability.
        area: least and greatest share of the image's area.
        ratio: least and greatest ratio of height to width.
        fill: what comes in, in the image's own units; 0 is the mean of normalised images.

    With p=1 and a square of one area it is Cutout (DeVries and Taylor, 2017), but for the place: a rectangle lies
    within the image.
    """

    draws = 5

    def __init__(
        self,
        p: Annotated[float, Interval(ge=0, le=1)] = 0.5,
        area: tuple[Annotated[float, Interval(ge=0, le=1)], Annotated[float, Interval(ge=0, le=1)]] = (0.02, 0.33),
        ratio: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (0.3, 3.3),
        fill: float = 0.0,
    ) -> None:
        for name, (least, greatest) in {"area": area, "ratio": ratio}.items():
            if least > greatest:
                raise UsageError(f"random_erasing.{name}: {least} is more than {greatest}", remedy="exchange them")
        self.p = p
        self.area = area
        self.ratio = ratio
        self.fill = fill

    def change(self, images: Tensor, numbers: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        numbers = numbers.to(torch.float64)
        area = self.area[0] + (self.area[1] - self.area[0]) * numbers[:, 1]
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = torch.exp(low + (high - low) * numbers[:, 2])
        rows = torch.sqrt(area * height * width * ratio).round().clamp(1, height)
        columns = torch.sqrt(area * height * width / ratio).round().clamp(1, width)
        erased = numbers[:, 0] < self.p
        inside = rectangles(numbers[:, 3:], rows, columns, height, width) & erased[:, None, None]
        return torch.where(_each(inside, images), torch.as_tensor(self.fill, dtype=images.dtype), images)


@register.transform("gaussian_noise")
class GaussianNoise(ImageTransform):
    """Add normal noise, of standard deviation `std`; to inputs of any shape.

    Args:
        std: in the units of the input.
    """

    def __init__(self, std: Annotated[float, Ge(0)]) -> None:
        self.std = std

    def __call__(self, image: Tensor) -> Tensor:
        return self._noisy(image, torch.randn(image.shape, dtype=torch.float32))

    def on_batch(self, batch: Batch) -> Batch:
        inputs: Tensor = batch.inputs
        return batch.replace(inputs=self._noisy(inputs, batch.random_normal(*inputs.shape[1:])), targets=batch.targets)

    def _noisy(self, values: Tensor, noise: Tensor) -> Tensor:
        if not values.is_floating_point():
            raise UsageError(
                f"gaussian_noise takes floating-point inputs, and was given {values.dtype}",
                remedy="bytes become floats in the batch: put it under train_batch_transforms, after `normalize`",
            )
        return values + (self.std * noise).to(values.dtype)


@register.transform("normalize")
class Normalize:
    """Give each channel mean 0 and standard deviation 1; bytes are read as values in 0..1.

    Args:
        mean: of each channel (the first dimension of an image), or one for all.
        std: likewise.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[Annotated[float, Gt(0)]]) -> None:
        if len(mean) != len(std):
            raise UsageError(f"normalize: {len(mean)} means and {len(std)} standard deviations")
        self.mean = tuple(mean)
        self.std = tuple(std)

    def __call__(self, image: Tensor) -> Tensor:
        return self._normal(image[None])[0]

    def on_batch(self, batch: Batch) -> Batch:
        return batch.replace(inputs=self._normal(batch.inputs), targets=batch.targets)

    def _normal(self, images: Tensor) -> Tensor:
        if images.dim() < 2 or len(self.mean) not in (1, images.shape[1]):
            raise UsageError(f"normalize: {len(self.mean)} channels, and the input has shape {tuple(images.shape[1:])}")
        scale = 1 if images.is_floating_point() else 255
        images = images if images.is_floating_point() else images.to(torch.get_default_dtype())
        shape = (1, len(self.mean), *[1] * (images.dim() - 2))
        mean = torch.tensor(self.mean, dtype=images.dtype, device=images.device).view(shape)
        std = torch.tensor(self.std, dtype=images.dtype, device=images.device).view(shape)
        return (images / scale - mean) / std


def rectangles(places: Tensor, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Masks (N, height, width) of one rectangle each.

    Args:
        places: (N, 2), where between the first and the last place that it can have, from [0, 1).
        rows, columns: (N,), whole numbers.
    """
    top = torch.floor(places[:, 0] * (height - rows + 1))[:, None, None]
    left = torch.floor(places[:, 1] * (width - columns + 1))[:, None, None]
    y = torch.arange(height, device=places.device)[:, None]
    x = torch.arange(width, device=places.device)[None, :]
    in_rows = (y >= top) & (y < top + rows[:, None, None])
    return in_rows & (x >= left) & (x < left + columns[:, None, None])


def _windows(images: Tensor, numbers: Tensor, height: int, width: int) -> Tensor:
    """A window of each image, at the place that two numbers say."""
    room_y, room_x = images.shape[-2] - height + 1, images.shape[-1] - width + 1
    if len(images) == 1 and images.is_cpu:  # a slice takes a fraction of the time of two gathers
        down, right = numbers[0].tolist()
        y, x = int(down * _STEPS) * room_y // _STEPS, int(right * _STEPS) * room_x // _STEPS
        return images[..., y : y + height, x : x + width].clone()
    grid = (numbers * _STEPS).long()  # whole numbers, of which a product is not rounded
    top, left = grid[:, 0] * room_y // _STEPS, grid[:, 1] * room_x // _STEPS
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    planes = images.reshape(len(images), -1, *images.shape[-2:])
    taken = planes.gather(2, rows[:, None, :, None].expand(-1, planes.shape[1], -1, planes.shape[3]))
    taken = taken.gather(3, columns[:, None, None, :].expand(-1, planes.shape[1], height, -1))
    return taken.reshape(*images.shape[:-2], height, width)


def _on_planes(function: Any, images: Tensor) -> Tensor:
    """Apply a function of floating-point (N, planes, H, W); whole numbers are rounded to their type again."""
    planes = images.reshape(len(images), -1, *images.shape[-2:])
    if images.is_floating_point():
        changed = function(planes)
    else:
        limits = torch.iinfo(images.dtype)
        changed = function(planes.to(torch.float32)).round_().clamp_(limits.min, limits.max).to(images.dtype)
    result: Tensor = changed.reshape(*images.shape[:-2], *changed.shape[-2:])
    return result


def _each(values: Tensor, images: Tensor) -> Tensor:
    """Values an image, (N,) or (N, H, W), in the dimensions of the images."""
    if values.dim() == 1:
        return values.view(-1, *[1] * (images.dim() - 1))
    return values.view(len(values), *[1] * (images.dim() - 3), *values.shape[1:])


def _pair(size: int | Sequence[int], name: str) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if len(size) != 2:
        raise UsageError(f"{name}: height and width are two numbers, not {len(size)}")
    return size[0], size[1]
