"""Lengths within a run, given in optimizer steps, in epochs or as a part of the run."""

from __future__ import annotations

from flambeau.errors import UsageError


def length_of(
    key: str,
    *,
    steps: float | None = None,
    epochs: float | None = None,
    part: float | None = None,
    total_steps: int,
    steps_per_epoch: int | None,
) -> float | None:
    """A length in optimizer steps, not rounded; None if it is given in no unit.

    Args:
        key: what it is called in messages: `scheduler.warmup`.
        total_steps: what `part` is a part of.
        steps_per_epoch: None where the length of the training data is not known.

    Raises:
        UsageError: it is given in two units, or in epochs of unknown length.
    """
    units = {"steps": steps, "epochs": epochs, "part": part}
    given = [unit for unit, value in units.items() if value is not None]
    if len(given) > 1:
        raise UsageError(
            f"{key} is given in {' and in '.join(given)}", remedy="give it in one of them, and null for the other"
        )
    if steps is not None:
        return steps
    if part is not None:
        return part * total_steps
    if epochs is None:
        return None
    if steps_per_epoch is None:
        raise UsageError(
            f"{key} is given in epochs, and the length of the training data is not known", remedy="give it in steps"
        )
    return epochs * steps_per_epoch
