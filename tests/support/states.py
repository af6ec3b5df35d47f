"""Whether two runs, or two states of a run, are equal bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flambeau.checkpoint import Checkpoint


def differences(one: Any, other: Any, place: str = "state") -> list[str]:
    """Places where two nested values are not the same: types, shapes and bits."""
    if type(one) is not type(other):
        return [f"{place}: {type(one).__name__} and {type(other).__name__}"]
    if isinstance(one, Mapping):
        if one.keys() != other.keys():
            return [f"{place}: keys {sorted(map(str, one))} and {sorted(map(str, other))}"]
        return [found for key in one for found in differences(one[key], other[key], f"{place}.{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{place}: {len(one)} and {len(other)} items"]
        pairs = enumerate(zip(one, other, strict=True))
        return [found for at, (a, b) in pairs for found in differences(a, b, f"{place}[{at}]")]
    if isinstance(one, torch.Tensor):
        one, other = one.detach().cpu(), other.detach().cpu()
        same = one.dtype == other.dtype and one.shape == other.shape and torch.equal(_bits(one), _bits(other))
    elif isinstance(one, np.ndarray):
        same = one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    elif isinstance(one, float):
        same = one == other or (math.isnan(one) and math.isnan(other))
    else:
        same = one == other
    return [] if same else [f"{place}: {one!r} and {other!r}"[:300]]


def assert_same(one: Any, other: Any) -> None:
    """Fail, with the places, unless two nested values are the same bit for bit."""
    found = differences(one, other)
    assert not found, "\n".join(found[:20])


def final_state(run: Path) -> dict[str, Any]:
    """All of the newest checkpoint of a run."""
    checkpoint = Checkpoint.open((run / "checkpoints" / "last").resolve())
    checkpoint.verify()
    return {"step": checkpoint.step, **checkpoint.load()}


def assert_same_runs(one: Path, other: Path) -> None:
    """Two runs ended with the same weights, optimizer, average, position, callbacks, scores and metrics.jsonl."""
    assert_same(final_state(one), final_state(other))
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
