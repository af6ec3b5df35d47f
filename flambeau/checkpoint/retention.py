"""Which checkpoints are best, and which may go."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

from flambeau.config.sections import CheckpointSettings

Mode = Literal["min", "max"]


def by_score(scores: Mapping[int, float | None], mode: Mode) -> list[int]:
    """Steps that have a score, the best first; of equal scores the earlier step. NaN is no score."""
    scored = {step: score for step, score in scores.items() if score is not None and not math.isnan(score)}
    sign = 1 if mode == "min" else -1
    return sorted(scored, key=lambda step: (sign * scored[step], step))


def surplus(
    scores: Mapping[int, float | None], settings: CheckpointSettings, mode: Mode, protect: Iterable[int] = ()
) -> list[int]:
    """Steps to remove, in order: neither among the newest, nor the best, nor a multiple, nor protected.

    Args:
        scores: the score of each checkpoint, by step; None where it was saved without one.
        settings: `keep_last`, `keep_best` and `keep_every_steps` say what is kept.
        mode: whether the lowest or the highest score is best.
        protect: steps that stay in any case.
    """
    kept = {*sorted(scores)[-settings.keep_last :], *by_score(scores, mode)[: settings.keep_best], *protect}
    every = settings.keep_every_steps
    return sorted(step for step in scores if step not in kept and not (every and step % every == 0))
