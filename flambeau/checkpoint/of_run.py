"""The checkpoint of a run that lies on disk, chosen without building anything of the run."""

from __future__ import annotations

from collections.abc import Callable

from flambeau.checkpoint.reading import Checkpoint
from flambeau.checkpoint.retention import Mode
from flambeau.checkpoint.store import CheckpointStore
from flambeau.config.sections import CheckpointSettings
from flambeau.errors import CheckpointError, UsageError
from flambeau.run_folder import RunFolder


def checkpoint_of_run(
    folder: RunFolder, which: str | int = "best", *, mode: Mode | None = None, warn: Callable[[str], None]
) -> Checkpoint:
    """A verified checkpoint: `best` (the newest, if no score was monitored), `last` or a step.

    Args:
        mode: whether the highest or the lowest score is best; default: what the run itself has linked as its best.
        warn: receives one line for each damaged checkpoint that is passed over.

    Raises:
        CheckpointError: there is none.
        UsageError: `which` is none of the three.
    """
    store = CheckpointStore(folder.checkpoints, settings=CheckpointSettings(), mode=mode or _mode_of(folder), warn=warn)
    if isinstance(which, int) or which.isdigit():
        return store.at(int(which))
    if which not in ("best", "last"):
        raise UsageError(f"'{which}' is no checkpoint", remedy="use best, last or a step")
    found = (store.best() if which == "best" else None) or store.newest()
    if found is None:
        raise CheckpointError(f"{folder.path} has no whole checkpoint")
    return found


def judged_part(folder: RunFolder, monitor: str | None = None) -> str:
    """The part of a run's checkpoints that its monitored score is of: `ema` for the average, else `model`.

    Args:
        monitor: the score's name where it is known otherwise than from the run's status.
    """
    best = folder.status.best
    name = str(best["metric"]) if best is not None else monitor or ""
    return "ema" if name.removeprefix("val/").startswith("ema/") else "model"


def _mode_of(folder: RunFolder) -> Mode:
    """Whether the highest or the lowest score is the run's best, by what it has linked or else recorded as that."""
    scores = {}
    for path in folder.checkpoints.glob("step-*"):
        try:
            checkpoint = Checkpoint.open(path)
        except CheckpointError:
            continue
        if checkpoint.score is not None and checkpoint.score == checkpoint.score:
            scores[path.name] = checkpoint.score
    best = scores.get((folder.checkpoints / "best").resolve().name)
    if best is None and folder.status.best is not None:
        best = folder.status.best["value"]
    return "min" if best is not None and scores and best < max(scores.values()) else "max"
