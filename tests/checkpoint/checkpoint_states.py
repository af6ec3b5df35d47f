"""What the tests of this room share: a store, and equality without tolerance."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flambeau.checkpoint import CheckpointStore
from flambeau.config.sections import CheckpointSettings


def store_in(
    folder: Path, mode: str = "max", warn: Callable[[str], None] | None = None, **settings: Any
) -> CheckpointStore:
    """A store of `folder/checkpoints` that fails on a warning unless the test takes it."""
    return CheckpointStore(
        folder / "checkpoints",
        settings=CheckpointSettings(**settings),
        mode=mode,  # type: ignore[arg-type]
        warn=warn or _unexpected,
    )


def _unexpected(text: str) -> None:
    raise AssertionError(f"warned: {text}")


def save(store: CheckpointStore, step: int, state: dict[str, Any] | None = None, **arguments: Any) -> None:
    """Save and wait."""
    store.save(step, {"step": step} if state is None else state, **arguments)
    store.wait()


def through_disk(folder: Path, value: Any) -> Any:
    """A value as a new store reads what another has written."""
    store = store_in(folder)
    save(store, 1, {"value": value})
    checkpoint = store_in(folder).newest()
    assert checkpoint is not None
    return checkpoint.load()["value"]


def assert_same(got: Any, wanted: Any, path: str = "state") -> None:
    """Equal in type, structure, order and every bit."""
    assert type(got) is type(wanted), f"{path}: {type(got)} is not {type(wanted)}"
    if isinstance(wanted, dict):
        assert list(got) == list(wanted), path
        assert [type(key) for key in got] == [type(key) for key in wanted], path
        for key in wanted:
            assert_same(got[key], wanted[key], f"{path}[{key!r}]")
    elif isinstance(wanted, (list, tuple)):
        assert len(got) == len(wanted), path
        for index, item in enumerate(wanted):
            assert_same(got[index], item, f"{path}[{index}]")
    elif isinstance(wanted, np.ndarray | np.generic):
        assert got.dtype == wanted.dtype, path
        assert got.shape == wanted.shape, path
        assert got.tobytes() == wanted.tobytes(), path
    elif type(wanted) is float:
        assert struct.pack("d", got) == struct.pack("d", wanted), path
    elif type(wanted).__module__ == "torch":
        import torch

        assert got.dtype == wanted.dtype, path
        assert got.shape == wanted.shape, path
        raw = [tensor.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8) for tensor in (got, wanted)]
        assert torch.equal(*raw), path
    else:
        assert got == wanted, path


def weights(seed: int, size: int = 1000) -> dict[str, Any]:
    """A state without torch, whose every value follows from the seed."""
    generator = np.random.default_rng(seed)
    return {
        "model": {
            "weight": generator.standard_normal(size),
            "bias": generator.standard_normal(3).astype("f4"),
        },
        "optimizer": {"state": {0: {"exp_avg": generator.standard_normal(size)}}, "lr": math.pi * seed},
        "seed": seed,
    }
