"""Which validation score decides what is best."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Literal

from flambeau.config.sections import TrainerSettings
from flambeau.errors import UsageError
from flambeau.metrics import Metric

Mode = Literal["min", "max"]


def choose_monitor(settings: TrainerSettings, metrics: Mapping[str, Metric]) -> tuple[str, Mode]:
    """The name of the monitored score (`val/accuracy`) and whether lower or higher is better.

    Without `trainer.monitor` it is the first metric that knows its direction, else the loss.

    Raises:
        UsageError: an unknown score; a mode that contradicts what the metric says of itself; no mode known.
    """
    directions: dict[str, Mode | None] = {"loss": "min"}
    for label, metric in metrics.items():
        higher = getattr(metric, "higher_is_better", None)
        directions[label] = None if higher is None else "max" if higher else "min"

    wanted = settings.monitor
    if wanted is None:
        known = [label for label in metrics if directions[label] is not None]
        label = known[0] if known else "loss"
        name = label
    else:
        name = wanted.removeprefix("val/")
        label = name.removeprefix("ema/")
        base = label.partition("/")[0]  # a metric that gives several values is named `label/key`
        if name.startswith("ema/") and settings.ema is None:
            raise UsageError(f"trainer.monitor is '{wanted}', and no average is kept", remedy="set trainer.ema")
        if base not in directions:
            near = difflib.get_close_matches(base, directions, n=1)
            hint = (
                f"did you mean 'val/{near[0]}'?" if near else f"there are {', '.join(f'val/{n}' for n in directions)}"
            )
            raise UsageError(f"trainer.monitor: no score is called '{wanted}'", remedy=hint)
        label = base

    natural = directions[label]
    mode = settings.monitor_mode or natural
    if mode is None:
        raise UsageError(
            f"'{label}' does not say whether higher is better",
            remedy="set trainer.monitor_mode to min or max",
        )
    if natural is not None and mode != natural:
        raise UsageError(
            f"trainer.monitor_mode is '{mode}', and of '{label}' "
            f"{'higher' if natural == 'max' else 'lower'} is better: the worst checkpoint would be kept as the best",
            remedy=f"set trainer.monitor_mode to {natural}, or leave it out",
        )
    return f"val/{name}", mode
