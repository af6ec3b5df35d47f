"""What a file becomes as the input of a sample, by kind."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flambeau.errors import MissingExtraError, UsageError
from flambeau.registry import load_function

Reader = Callable[[Path], Any]

KINDS = ("image", "grey", "npy", "text", "bytes")


def reader_of(kind: str, image_size: int | None = None) -> Reader:
    """The function that reads a file: of a kind that is known here, or at an import path.

    Raises:
        UsageError: there is no such kind, or nothing at that path; `image_size` is given for what is no image.
    """
    if image_size is not None and kind not in ("image", "grey"):
        raise UsageError(f"data.image_size: '{kind}' reads no images", remedy="leave image_size out")
    if kind in ("image", "grey"):
        return ImageReader("RGB" if kind == "image" else "L", image_size)
    plain: dict[str, Reader] = {"npy": read_npy, "text": read_text, "bytes": Path.read_bytes}
    if kind in plain:
        return plain[kind]
    if "." not in kind:
        raise UsageError(
            f"data.reader: there is no reader '{kind}'",
            remedy=f"there are {', '.join(KINDS)}; or give the import path of a function of a path",
        )
    return load_function(kind, "data.reader")


class ImageReader:
    """An image file as bytes, uint8 (C, H, W); whatever its own colours are, with those of `mode`.

    Args:
        mode: `RGB`, or `L` for shades of grey.
        size: height and width that it is resized to; None leaves it as it is.
    """

    def __init__(self, mode: str, size: int | None) -> None:
        try:
            self._image = import_module("PIL.Image")
        except ModuleNotFoundError as error:
            if error.name not in ("PIL", "PIL.Image"):
                raise
            raise MissingExtraError("Pillow, which reads images,", "images") from error
        self.mode = mode
        self.size = size

    def __call__(self, path: Path) -> torch.Tensor:
        try:
            with self._image.open(path) as file:
                image = file.convert(self.mode)
        except (OSError, SyntaxError, ValueError) as error:
            raise UsageError(f"{path} cannot be read as an image: {error}") from error
        if self.size is not None:
            image = image.resize((self.size, self.size), self._image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image))
        return pixels.permute(2, 0, 1).contiguous() if pixels.dim() == 3 else pixels.unsqueeze(0)

    def __getstate__(self) -> dict[str, Any]:
        return {"mode": self.mode, "size": self.size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["mode"], state["size"])  # type: ignore[misc]


def read_npy(path: Path) -> torch.Tensor:
    """An array; floating-point numbers become torch's default type. Nothing in the file is run."""
    try:
        array = torch.from_numpy(np.load(path, allow_pickle=False))
    except (ValueError, TypeError, EOFError) as error:
        raise UsageError(f"{path} cannot be read as an array: {error}") from error
    return array.to(torch.get_default_dtype()) if array.is_floating_point() else array


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """A whole file as text."""
    try:
        return path.read_bytes().decode(encoding)
    except UnicodeDecodeError as error:
        raise not_in_encoding(path, encoding, error) from error


def not_in_encoding(path: Path, encoding: str, error: UnicodeDecodeError) -> UsageError:
    """Says where a file stops being text."""
    line = error.object.count(b"\n", 0, error.start) + 1
    return UsageError(
        f"{path}:{line}: byte {error.start} is not text in {encoding}",
        remedy="say with data.encoding how the file is written, or convert it",
    )
