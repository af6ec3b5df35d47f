"""A nested state as plain data: a tree that JSON holds exactly, and beside it the list of its tensors.

None, booleans, strings, lists, finite floats, integers of 64 bits and dicts with string keys are themselves.
All else is an object whose first key begins with `$`:

| node | stands for |
|---|---|
| `{"$tensor": name, ...}`, `{"$array": name, ...}` | a torch tensor, numpy array of the safetensors file |
| `{"$sharded": name}` | a torch tensor whose pieces several processes wrote, see `shards` |
| `{"$scalar": [dtype, base64]}` | a numpy scalar |
| `{"$tuple": [...]}`, `{"$bytes": base64}`, `{"$int": hex}`, `{"$text": base64}` | what JSON cannot say |
| `{"$float": hex}` | NaN and the infinities, by their eight bytes |
| `{"$dict": [[key, value], ...]}` | a dict with keys that are not plain strings |
| `{"$ordered": [[key, value], ...], "metadata": node}` | an OrderedDict; a state dict has metadata |

A tensor node says beside its name what the safetensors file cannot: `dtype` and `shape` where the file holds
raw bytes, and `strides` (in elements) where the memory order was not the usual one, such as channels-last.
Whether two tensors shared memory, `requires_grad` and the device are not kept.
"""

from __future__ import annotations

import base64
import math
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flambeau.errors import CheckpointError

if TYPE_CHECKING:
    import torch

SHARDS = "shards"
"""In place of a file: the tensor is one of those that lie in pieces over several processes."""
MAX_DEPTH = 150
"""Levels of nesting that a state may have; below the recursion limits of Python and of its JSON reader."""


@dataclass(slots=True)
class Leaf:
    """One tensor or array of a state."""

    file: str
    """The safetensors file that holds it."""
    name: str
    """Its name there: its dotted path, made unique; for weights their plain name."""
    value: torch.Tensor | np.ndarray[Any, Any]
    node: dict[str, Any]
    """Its node in the tree; whoever stores the value adds how it is stored."""


def tensor_file(part: str) -> str:
    """The file of a part's tensors: weights have one of their own, for other programs to read."""
    return f"{part}.safetensors" if part in ("model", "ema") else "state.safetensors"


def encode(state: Mapping[str, Any], *, sharded: bool = False) -> tuple[dict[str, Any], list[Leaf]]:
    """Split a state into a tree for JSON and its tensors.

    Args:
        sharded: whether tensors may lie in pieces over several processes.

    Returns:
        The tree, one node per top-level key, and the leaves in the order of the state. The leaves hold the
        tensors themselves, not copies.

    Raises:
        CheckpointError: a value has a type that could not be given back as it was; the message has its path.
    """
    encoder = _Encoder(sharded)
    for part in state:
        if type(part) is not str or not _is_plain(part):
            raise CheckpointError(f"a state's top-level keys are plain strings, not {part!r}")
    return {part: encoder.part(part, value) for part, value in state.items()}, encoder.leaves


class _Encoder:
    """One walk over a state."""

    def __init__(self, sharded: bool) -> None:
        self.leaves: list[Leaf] = []
        self._sharded = sharded
        self._taken: dict[str, set[str]] = {}
        self._part = ""
        # A state can hold tensors only if somebody has imported torch; then it need not be imported here.
        self._torch = sys.modules.get("torch")

    def part(self, part: str, value: Any) -> Any:
        self._part = part
        return self._node(value, ())

    def _node(self, value: Any, path: tuple[str | int, ...]) -> Any:
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is int:
            return value if -(2**63) <= value < 2**64 else {"$int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"$float": struct.pack(">d", value).hex()}
        if kind is str:
            return value if _is_plain(value) else {"$text": _base64(value.encode("utf-8", "surrogatepass"))}
        if kind is bytes:
            return {"$bytes": _base64(value)}
        if len(path) > MAX_DEPTH:
            raise CheckpointError(f"{self._at(path)} is nested too deeply, or contains itself")
        if kind is list:
            return [self._node(item, (*path, index)) for index, item in enumerate(value)]
        if kind is tuple:
            return {"$tuple": [self._node(item, (*path, index)) for index, item in enumerate(value)]}
        if kind is dict:
            if all(type(key) is str and key[:1] != "$" and _is_plain(key) for key in value):
                return {key: self._node(item, (*path, key)) for key, item in value.items()}
            return {"$dict": self._pairs(value, path)}
        if kind is OrderedDict:
            node: dict[str, Any] = {"$ordered": self._pairs(value, path)}
            metadata = getattr(value, "_metadata", None)  # torch: the version of each module's state
            if metadata is not None:
                node["metadata"] = self._node(metadata, (*path, "_metadata"))
            return node
        return self._array(value, path)

    def _pairs(self, value: dict[Any, Any], path: tuple[str | int, ...]) -> list[list[Any]]:
        for key in value:
            if type(key) is not str and type(key) is not int:
                raise CheckpointError(
                    f"{self._at(path)} has the key {key!r} ({type(key).__name__})",
                    remedy="a checkpoint keeps dicts whose keys are strings or integers",
                )
        return [[self._node(key, path), self._node(item, (*path, key))] for key, item in value.items()]

    def _array(self, value: Any, path: tuple[str | int, ...]) -> dict[str, Any]:
        torch = self._torch
        file = tensor_file(self._part)
        if torch is not None and isinstance(value, torch.Tensor):
            if self._sharded and hasattr(value, "__create_write_items__"):
                node: dict[str, Any] = {"$sharded": self._name(path, SHARDS)}
                self.leaves.append(Leaf(SHARDS, node["$sharded"], value, node))
                return node
            tensors = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
            if type(value) not in tensors or value.layout is not torch.strided or value.is_quantized:
                raise self._refusal(value, path, "a plain dense tensor")
            if value.is_meta:
                raise CheckpointError(f"{self._at(path)} is on the meta device and has no values to save")
            node = {"$tensor": self._name(path, file)}
            strides = list(value.stride())
            if strides != _usual_strides(value.shape) and _is_dense(value.shape, strides):
                node["strides"] = strides
        elif type(value) is np.ndarray and not value.dtype.hasobject and value.dtype.fields is None:
            node = {"$array": self._name(path, file)}
        elif isinstance(value, np.generic) and not value.dtype.hasobject and value.dtype.fields is None:
            return {"$scalar": [value.dtype.str, _base64(value.tobytes())]}
        else:
            raise self._refusal(value, path, "dicts, lists, tuples, numbers, strings, bytes, tensors and arrays")
        self.leaves.append(Leaf(file, next(iter(node.values())), value, node))
        return node

    def _name(self, path: tuple[str | int, ...], file: str) -> str:
        """The path as a name that the file has not yet: `{"a.b": x, "a": {"b": y}}` has two `a.b`."""
        if file in (SHARDS, "state.safetensors") or not path:
            path = (self._part, *path)
        base = name = ".".join(map(str, path)).encode("utf-8", "replace").decode()
        # `__metadata__` is the one key of a safetensors header that is no tensor.
        taken = self._taken.setdefault(file, {"__metadata__"})
        count = 1
        while name in taken:
            count += 1
            name = f"{base}#{count}"
        taken.add(name)
        return name

    def _at(self, path: tuple[str | int, ...]) -> str:
        shown = path if len(path) < 8 else (*path[:7], "...")
        return "state" + "".join(f"[{key!r}]" for key in (self._part, *shown))

    def _refusal(self, value: Any, path: tuple[str | int, ...], what: str) -> CheckpointError:
        kind = type(value)
        return CheckpointError(
            f"{self._at(path)} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot hold",
            remedy=f"it takes {what}; convert the value in the state_dict() that gives it",
        )


def decode(node: Any, fetch: Callable[[dict[str, Any]], Any]) -> Any:
    """Rebuild a value from its node; `fetch` turns a `$tensor`, `$array` or `$sharded` node into its tensor or array.

    Raises:
        CheckpointError: the tree holds a node that this version does not know.
    """
    if type(node) is list:
        return [decode(item, fetch) for item in node]
    if type(node) is not dict:
        return node
    kind = next(iter(node), "")
    if kind[:1] != "$":
        return {key: decode(item, fetch) for key, item in node.items()}
    content = node[kind]
    match kind:
        case "$tensor" | "$array" | "$sharded":
            return fetch(node)
        case "$tuple":
            return tuple(decode(item, fetch) for item in content)
        case "$dict":
            return {decode(key, fetch): decode(item, fetch) for key, item in content}
        case "$ordered":
            ordered = OrderedDict((decode(key, fetch), decode(item, fetch)) for key, item in content)
            if "metadata" in node:
                ordered._metadata = decode(node["metadata"], fetch)  # type: ignore[attr-defined]
            return ordered
        case "$bytes":
            return base64.b64decode(content)
        case "$text":
            return base64.b64decode(content).decode("utf-8", "surrogatepass")
        case "$int":
            return int(content, 16)
        case "$float":
            return struct.unpack(">d", bytes.fromhex(content))[0]
        case "$scalar":
            dtype, data = content
            return np.ndarray((), dtype, base64.b64decode(data))[()]
    raise CheckpointError(f"the checkpoint holds a value of the unknown kind {kind!r}")


def _is_plain(text: str) -> bool:
    """Whether JSON gives the text back: two halves of a surrogate pair would come back as one character."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _usual_strides(shape: tuple[int, ...]) -> list[int]:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return strides[::-1]


def _is_dense(shape: tuple[int, ...], strides: list[int]) -> bool:
    """Whether the elements fill their memory without gap or overlap, in whatever order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True
