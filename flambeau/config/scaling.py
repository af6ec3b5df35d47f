"""The learning rate for another batch than the one that it was found for."""

from __future__ import annotations

from typing import Literal


def scaled_rate(lr: float, *, batch: int, reference: int, rule: Literal["linear", "sqrt"]) -> float:
    """`lr`, meant for a global batch of `reference` samples, for one of `batch`: the same on any number of devices.

    In proportion (Goyal et al., 2017, section 2.1), or with the square root (Krizhevsky, 2014), which keeps the
    variance of an update; that is also advised for Adam (Malladi et al., 2022).
    """
    ratio = batch / reference
    return lr * (ratio if rule == "linear" else ratio**0.5)


def describe_scaling(lr: float, *, batch: int, reference: int, rule: Literal["linear", "sqrt"]) -> str:
    """What becomes of a learning rate, for people: `0.004 for a batch of 1,024 (0.001 for 256, linear)`."""
    used = scaled_rate(lr, batch=batch, reference=reference, rule=rule)
    return f"{used:.6g} for a batch of {batch:,} ({lr:g} for {reference:,}, {rule})"
