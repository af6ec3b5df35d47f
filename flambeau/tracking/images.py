"""Images for trackers: to one PNG, with nothing but numpy and zlib; what Pillow reads is taken too."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flambeau.errors import MissingExtraError

PADDING = 2
"""Pixels between the images of a grid."""

_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # channels to PNG's colour type: grey, grey + alpha, RGB, RGBA


def to_pixels(image: Any) -> NDArray[np.uint8]:
    """One picture (H, W, C), uint8, of an image (C, H, W), (H, W), or of several (N, C, H, W) set in a grid.

    Floats are taken as 0..1: what lies outside is cut off, NaN is black, halves round to even. Booleans are
    black and white, uint8 is taken as it is. Tensors may lie on any device and need gradients. An image of Pillow's,
    or the path of a file that Pillow reads, is one too.

    Raises:
        MissingExtraError: a path, and Pillow is not installed.
        ValueError: another shape, or a number of channels other than 1 to 4.
    """
    array = _to_array(image)
    if array.ndim == 2:
        array = array[None]
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or array.shape[1] not in _COLOUR_TYPES or 0 in array.shape:
        raise ValueError(f"an image has shape (C, H, W) or (N, C, H, W) with 1 to 4 channels, not {array.shape}")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype != np.uint8:
        scaled = np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0) * 255
        array = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return _grid(array)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """The PNG file (ISO/IEC 15948) of a picture (H, W, C) with 1 to 4 channels, uint8."""
    height, width, channels = pixels.shape
    # Each row begins with the number of its filter; 0 is none.
    rows = np.zeros((height, 1 + width * channels), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _to_array(image: Any) -> NDArray[Any]:
    if isinstance(image, Path | str):
        image = _open(image)
    if hasattr(image, "getbands"):  # Pillow's: palettes and the like as colours
        plain = image if image.mode in ("L", "LA", "RGB", "RGBA") else image.convert("RGB")
        pixels = np.asarray(plain)
        return pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if hasattr(image, "detach"):
        tensor = image.detach()
        # numpy has no bfloat16, so every float goes over as float32.
        return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy())
    return np.asarray(image)


def _open(path: Path | str) -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "PIL":
            raise
        raise MissingExtraError("Pillow", "vision") from error
    with Image.open(path) as image:
        image.load()
        return image


def _grid(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    step_y, step_x = height + PADDING, width + PADDING
    grid = np.zeros((rows * step_y - PADDING, columns * step_x - PADDING, channels), np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * step_y, index % columns * step_x
        grid[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return grid
