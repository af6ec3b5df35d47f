"""Tensors and arrays as PNG."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flambeau.tracking.images import PADDING, encode_png, to_pixels


def decode(png: bytes) -> tuple[int, np.ndarray[Any, Any]]:
    """Colour type and pixels of an unfiltered 8-bit PNG, its checksums verified."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, rest = {}, png[8:]
    while rest:
        (length,) = struct.unpack(">I", rest[:4])
        kind, data, check = rest[4:8], rest[8 : 8 + length], rest[8 + length : 12 + length]
        assert struct.unpack(">I", check)[0] == zlib.crc32(kind + data)
        chunks[kind], rest = data, rest[12 + length :]
    width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    channels = {0: 1, 4: 2, 2: 3, 6: 4}[colour]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + width * channels)
    assert depth == 8 and not rows[:, 0].any()
    return colour, rows[:, 1:].reshape(height, width, channels)


@given(hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 7)] * 2, st.integers(1, 4))))
def test_a_png_holds_the_pixels_given(pixels: np.ndarray[Any, Any]) -> None:
    """Grey, grey with alpha, RGB and RGBA of any size."""
    colour, found = decode(encode_png(pixels))
    assert np.array_equal(found, pixels)
    assert colour == {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2]]


def test_floats_are_taken_from_0_to_1() -> None:
    """Rounded; what lies outside is cut off, NaN is black."""
    image = torch.tensor([[[0.0, 1.0, 0.5, -3.0, 7.0, float("nan"), float("inf"), 0.1]]])
    assert to_pixels(image).ravel().tolist() == [0, 255, 128, 0, 255, 0, 255, 26]


@pytest.mark.parametrize(
    "image",
    [
        torch.full((3, 2, 2), 1.0, dtype=torch.float64),
        torch.full((3, 2, 2), 1.0, dtype=torch.bfloat16),
        torch.full((3, 2, 2), 1.0, requires_grad=True),
        torch.full((3, 2, 2), 255, dtype=torch.uint8),
        torch.full((3, 2, 2), True),
        np.full((3, 2, 2), 1.0, np.float16),
        np.ones((2, 2)).tolist(),
    ],
    ids=["float64", "bfloat16", "with gradient", "uint8", "bool", "numpy half", "nested list"],
)
def test_white_is_white_in_every_type(image: Any) -> None:
    """Tensors and arrays of floats, bytes and booleans."""
    assert (to_pixels(image) == 255).all()


def test_several_images_stand_in_a_grid_row_by_row() -> None:
    """Near to a square, with black lines between."""
    images = np.stack([np.full((1, 4, 6), value, np.uint8) for value in range(1, 6)])
    pixels = to_pixels(images)[..., 0]
    assert pixels.shape == (2 * 4 + PADDING, 3 * 6 + 2 * PADDING)
    tops, lefts = (0, 4 + PADDING), (0, 6 + PADDING, 2 * (6 + PADDING))
    found = [[int(pixels[top, left]) for left in lefts] for top in tops]
    assert found == [[1, 2, 3], [4, 5, 0]]
    assert not pixels[4 : 4 + PADDING].any()


@pytest.mark.parametrize("shape", [(5,), (5, 4, 4), (2, 5, 4, 4), (1, 1, 1, 4, 4), (0, 3, 4, 4), (3, 0, 4)])
def test_other_shapes_are_refused_with_the_right_ones(shape: tuple[int, ...]) -> None:
    """Channels first, one to four of them."""
    with pytest.raises(ValueError, match=r"\(C, H, W\) or \(N, C, H, W\)"):
        to_pixels(np.zeros(shape))


def test_images_of_pillow_and_files_are_taken(tmp_path: Path) -> None:
    """Whatever their mode: grey stays grey, a palette becomes colours."""
    image = pytest.importorskip("PIL.Image", reason="Pillow reads them")
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    colour = image.fromarray(pixels)
    assert np.array_equal(to_pixels(colour), pixels)
    assert np.array_equal(to_pixels(colour.getchannel("R")), pixels[:, :, :1])
    assert to_pixels(colour.convert("P")).shape == (2, 4, 3)
    colour.save(tmp_path / "image.png")
    assert np.array_equal(to_pixels(tmp_path / "image.png"), pixels)
    assert np.array_equal(to_pixels(str(tmp_path / "image.png")), pixels)
