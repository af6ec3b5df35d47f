"""The safetensors format: which dtypes it has, a writer that streams, and reading through its library.

The library's own writer wants all bytes in one call and reports a full disk without its errno, so files are
written here (https://github.com/huggingface/safetensors#format): eight bytes of header length, a JSON header
with dtype, shape and byte range of each tensor, and their bytes end to end. The library reads them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

    from flambeau.checkpoint.shards import StoredPieces

ITEM_SIZES = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 8,
    "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
"""Bytes of an element, by the format's dtype codes that are used here."""

TORCH_CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "complex64": "C64",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "bool": "BOOL",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
}  # fmt: skip
"""Code of a torch dtype, by its name below `torch.`; any other is stored as raw bytes."""

_TORCH_NAMES = {code: name for name, code in TORCH_CODES.items()}

NUMPY_CODES = {
    np.dtype(name): code for name, code in TORCH_CODES.items() if name != "bfloat16" and not name.startswith("float8")
}
"""Code of a numpy dtype; any other is stored as raw bytes."""


@dataclass(slots=True)
class StoredTensor:
    """One tensor as a safetensors file holds it."""

    name: str
    code: str
    shape: tuple[int, ...]
    data: memoryview
    """Its elements in C order, as bytes."""


class Storable(Protocol):
    """What can be written as one tensor; its data may be brought only when it is asked for."""

    @property
    def name(self) -> str: ...
    @property
    def code(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def data(self) -> memoryview: ...


def storage_of(dtype: str | np.dtype[Any], item_size: int, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Code and shape in the file, of a torch dtype (by name) or a numpy dtype.

    A dtype that the format does not have becomes raw bytes, with one more dimension: the bytes of an element.
    """
    code = TORCH_CODES.get(dtype) if isinstance(dtype, str) else NUMPY_CODES.get(dtype)
    return (code, shape) if code is not None else ("U8", (*shape, item_size))


def safetensors_chunks(tensors: Iterable[Storable]) -> Iterator[memoryview | bytes]:
    """The content of a safetensors file, piece by piece: the header, then each tensor's bytes.

    Tensors are ordered by the size of their elements, so that each begins at a multiple of it.
    """
    ordered = sorted(tensors, key=lambda tensor: (-ITEM_SIZES[tensor.code], tensor.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # loaders of transformers insist on it
    offset = 0
    for tensor in ordered:
        end = offset + prod(tensor.shape) * ITEM_SIZES[tensor.code]
        header[tensor.name] = {"dtype": tensor.code, "shape": tensor.shape, "data_offsets": (offset, end)}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in ordered:
        yield tensor.data


class TensorReader:
    """The tensors of one safetensors file, one at a time. Use as a context manager.

    The library opens the file once for torch tensors and once for numpy arrays, each when first asked for, so
    that a state without tensors is read without torch.
    """

    def __init__(self, path: Path, device: str | torch.device) -> None:
        self._path = path
        self._device = str(device)
        self._stack = ExitStack()
        self._open: dict[str, Any] = {}

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def tensor(self, node: dict[str, Any]) -> torch.Tensor:
        """The torch tensor of a `$tensor` node."""
        import torch

        stored: torch.Tensor = self._file("pt", self._device).get_tensor(node["$tensor"])
        if stored.device.type == "cpu":
            # Into torch's own memory: the mapped file would be read again whenever its pages are dropped, from
            # a disk that may have failed by then, and it is aligned too little for some kernels (complex128).
            stored = stored.clone()
        if "dtype" in node:
            stored = stored.reshape(-1).view(getattr(torch, node["dtype"])).reshape(node["shape"])
        if "strides" in node:
            strides = node["strides"]
            ordered = torch.empty_strided(stored.shape, strides, dtype=stored.dtype, device=stored.device)
            return ordered.copy_(stored)
        return stored

    def stored(self, node: dict[str, Any]) -> StoredPieces:
        """Where the torch tensor of a `$tensor` node lies: all of it here."""
        from flambeau.checkpoint.shards import Chunk, StoredPieces, dtype_named

        stored = self._file("pt", self._device).get_slice(node["$tensor"])
        dtype = node.get("dtype") or _TORCH_NAMES[stored.get_dtype()]
        shape = tuple(node.get("shape", stored.get_shape()))
        chunk = Chunk(self._path.name, node["$tensor"], (0,) * len(shape), shape)
        return StoredPieces(dtype_named(dtype), shape, (chunk,))

    def array(self, node: dict[str, Any]) -> np.ndarray[Any, Any]:
        """The numpy array of an `$array` node."""
        stored: np.ndarray[Any, Any] = self._file("np", "cpu").get_tensor(node["$array"])
        if "dtype" in node:
            return np.frombuffer(stored.tobytes(), dtype=node["dtype"]).reshape(node["shape"]).copy()
        return stored.copy()

    def _file(self, framework: str, device: str) -> Any:
        if framework not in self._open:
            from safetensors import safe_open

            file: Any = safe_open(str(self._path), framework=framework, device=device)
            self._open[framework] = self._stack.enter_context(file)
        return self._open[framework]
