"""Tensors of a class of their own (an 8-bit optimizer's state) as the plain tensors that they are made of.

A checkpoint holds plain tensors. torch lets a tensor class say what it is made of (`__tensor_flatten__`): that is
saved, with the class's import path. It is given back to a class that the program has imported already, because the
configuration names the optimizer that it belongs to: a checkpoint imports nothing.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from flambeau.errors import CheckpointError

MARK = "tensor class"
"""The key that says that a mapping stands for such a tensor."""
_PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def unwrapped(value: Any) -> Any:
    """A nested state with a mapping of plain tensors in the place of each tensor of another class.

    Tensors that lie in pieces over several processes stay what they are.
    """
    if isinstance(value, torch.Tensor):
        kind = type(value)
        if kind in _PLAIN or not hasattr(value, "__tensor_flatten__") or hasattr(value, "to_local"):
            return value
        names, context = value.__tensor_flatten__()
        parts = {name: unwrapped(getattr(value, name)) for name in names}
        settings = [f"torch dtype {item}" if isinstance(item, torch.dtype) else item for item in context or ()]
        return {MARK: f"{kind.__module__}.{kind.__qualname__}", "parts": parts, "settings": settings}
    if type(value) is dict:
        return {key: unwrapped(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(unwrapped, value))
    return value


def wrapped(value: Any) -> Any:
    """What `unwrapped` was given.

    Raises:
        CheckpointError: a class is not one of tensors that has been imported.
    """
    if type(value) is dict:
        if MARK in value:
            kind = _find(value[MARK])
            settings = [_setting(item) for item in value["settings"]]
            return kind.__tensor_unflatten__(wrapped(value["parts"]), settings, None, None)
        return {key: wrapped(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(wrapped, value))
    return value


def _find(path: str) -> Any:
    home, _, name = path.rpartition(".")
    kind = getattr(sys.modules.get(home), name, None)
    if not (isinstance(kind, type) and issubclass(kind, torch.Tensor) and hasattr(kind, "__tensor_unflatten__")):
        raise CheckpointError(
            f"the checkpoint holds tensors of the class {path}, which this optimizer does not use",
            remedy="configure the optimizer that the run began with",
        )
    return kind


def _setting(item: Any) -> Any:
    dtype = item.removeprefix("torch dtype torch.") if isinstance(item, str) else item
    return getattr(torch, dtype) if dtype != item else item
