"""The learning rate for another batch than the one that it was found for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from flambeau.config.sections import LoaderSettings, OptimizerSettings

if TYPE_CHECKING:
    from flambeau.config.load import Config


def scaled_rate(lr: float, *, batch: int, reference: int, rule: Literal["linear", "sqrt"]) -> float:
    """`lr`, meant for a global batch of `reference` samples, for one of `batch`: the same on any number of devices.

    In proportion (Goyal et al., 2017, section 2.1), or with the square root (Krizhevsky, 2014), which keeps the
    variance of an update; that is also advised for Adam (Malladi et al., 2022).
    """
    ratio = batch / reference
    return lr * (ratio if rule == "linear" else ratio**0.5)


def reference_rate(config: Config, lr: float) -> float:
    """What `optimizer.lr` has to be so that the rate in use is `lr`; the inverse of the scaling, if there is any."""
    optimizer, batch = config.section("optimizer"), _batch(config, ranks=1)
    reference = optimizer.get("lr_reference_batch")
    if not isinstance(reference, int) or not isinstance(batch, int):
        return lr
    rule = optimizer.get("lr_scaling") or OptimizerSettings.lr_scaling
    return lr / scaled_rate(1.0, batch=batch, reference=reference, rule=rule)


def _batch(config: Config, ranks: int | None) -> int | None:
    """The global batch; None where it is not known."""
    data = config.section("data")
    if per_rank := data.get("batch_size_per_rank"):
        return per_rank * ranks if ranks is not None else None
    return data.get("batch_size") or LoaderSettings.batch_size


def scaling_of(config: Config, ranks: int | None = None) -> str | None:
    """What becomes of a learning rate, for people: `0.004 for a batch of 1,024 (0.001 for 256, linear)`.

    Args:
        ranks: processes that train; None where that is not known yet.

    Returns:
        None if the rate is not scaled, is the optimizer's default, or if the batch is not known.
    """
    optimizer, batch = config.section("optimizer"), _batch(config, ranks)
    reference, lr = optimizer.get("lr_reference_batch"), optimizer.get("lr")
    if not isinstance(reference, int) or not isinstance(lr, int | float) or not isinstance(batch, int):
        return None
    rule = optimizer.get("lr_scaling") or OptimizerSettings.lr_scaling
    used = scaled_rate(lr, batch=batch, reference=reference, rule=rule)
    return f"{used:.6g} for a batch of {batch:,} ({lr:g} for {reference:,}, {rule})"
