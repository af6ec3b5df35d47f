"""Batches of samples of different lengths: padded at the end to the longest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from flambeau.data.batch import collate, input_and_target
from flambeau.errors import UsageError


class Padding:
    """A data module's `collate`: pads named tensors at the end of their dimensions, and stacks the rest.

    How far a sample is padded depends on the others in its batch, so on the number of processes and micro-batches: a
    model must give each sample the result that it would have alone (by lengths or a mask), and a criterion must pass
    over padded targets (`ignore_index`).

    Args:
        values: what tensors are padded with, by the dotted name of their place in a sample: `{"inputs.tokens": 0,
            "targets": -100}`. The name of a whole half is `inputs` or `targets`.

    Example:
        `self.collate = Padding({"inputs.tokens": 0})` in a data module whose samples are
        `{"inputs": {"tokens": tokens, "lengths": len(tokens)}, "targets": label}`.

    Raises:
        UsageError: a sample has no such place, no tensor there, or one of another number of dimensions.
    """

    def __init__(self, values: Mapping[str, float]) -> None:
        self.values = dict(values)

    def __call__(self, samples: Sequence[Any]) -> tuple[Any, Any]:
        halves = [dict(zip(("inputs", "targets"), input_and_target(sample), strict=True)) for sample in samples]
        for place, value in self.values.items():
            self._pad(halves, place, value)
        return collate([(half["inputs"], half["targets"]) for half in halves])

    def _pad(self, samples: list[dict[str, Any]], place: str, value: float) -> None:
        """Replace the tensors at `place` by padded ones, in copies of the dicts on the way there."""
        *way, last = place.split(".")
        parents = [_copied_way(sample, way, place) for sample in samples]
        tensors = [_tensor_at(parent, last, place) for parent in parents]
        dimensions = {tensor.ndim for tensor in tensors}
        if len(dimensions) > 1:
            raise UsageError(f"'{place}' has {' and '.join(map(str, sorted(dimensions)))} dimensions in one batch")
        shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
        for parent, tensor in zip(parents, tensors, strict=True):
            missing = [edge for size, whole in zip(tensor.shape, shape, strict=True) for edge in (whole - size, 0)]
            parent[last] = pad(tensor, missing[::-1], value=value)


def _copied_way(sample: dict[str, Any], way: Sequence[str], place: str) -> dict[str, Any]:
    """The dict that `place` is in; it and those around it are copies, so that the dataset's own stay as they are."""
    for key in way:
        inner = sample.get(key)
        if not isinstance(inner, Mapping):
            raise UsageError(f"a sample has no '{place}' to pad", remedy=f"it has {', '.join(map(str, sample))}")
        sample[key] = dict(inner)
        sample = sample[key]
    return sample


def _tensor_at(parent: dict[str, Any], key: str, place: str) -> torch.Tensor:
    if key not in parent:
        raise UsageError(f"a sample has no '{place}' to pad", remedy=f"it has {', '.join(map(str, parent))}")
    value = parent[key]
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if not isinstance(value, torch.Tensor):
        raise UsageError(f"'{place}' is to be padded, and is no tensor or array but a {type(value).__name__}")
    return value
