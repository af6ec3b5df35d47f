"""Random numbers that belong to samples: the same for a sample however the samples lie in batches and processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from flambeau.runtime.seeds import derive

_BLOCK = 256
"""Rows that are drawn at a time."""


def normal_rows(seed: int, rows: Iterable[int], shape: Sequence[int]) -> torch.Tensor:
    """Standard normal numbers (rows, *shape), float32 on the CPU; each row is a function of `seed` and its number.

    Drawn in blocks, so that many rows near each other cost little.
    """
    blocks: dict[int, torch.Tensor] = {}
    found = []
    for row in rows:
        number, place = divmod(int(row), _BLOCK)
        if number not in blocks:
            generator = torch.Generator().manual_seed(derive(seed, number))
            blocks[number] = torch.randn(_BLOCK, *shape, generator=generator)
        found.append(blocks[number][place])
    return torch.stack(found) if found else torch.empty(0, *shape)
