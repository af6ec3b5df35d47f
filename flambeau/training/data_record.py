"""What a run remembers of its data, so that it does not go on with others unnoticed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from flambeau.data.fingerprint import Fingerprint, fingerprint, what_changed
from flambeau.errors import CheckpointError
from flambeau.run_folder.atomic import write_atomically

if TYPE_CHECKING:
    from flambeau.training.trainer import Trainer

Record = dict[str, Fingerprint | None]

_PARTS = {"train": "training data", "val": "validation data", "test": "test data", "module": "data module's data"}


def take_record(trainer: Trainer) -> Record:
    """The fingerprint of each part of the data, taken by rank 0."""

    def taken() -> Record:
        mode = trainer.loader.fingerprint
        record = {
            part: fingerprint(data, mode)
            for part, data in (("train", trainer.train_data), ("val", trainer.val_data), ("test", trainer.test_data))
        }
        own = trainer.own_fingerprint
        if own is not None and mode != "off":
            record["module"] = {"samples": None, "kind": "own", "digest": str(own())}
        return record

    found: Any = trainer.world.broadcast(taken() if trainer.world.is_main else None)
    return found  # type: ignore[no-any-return]


def write_record(trainer: Trainer) -> None:
    """`data.json` in the run folder."""
    if trainer.run_folder is not None and trainer.world.is_main:
        write_atomically(trainer.run_folder.data_file, json.dumps(trainer.data_record, indent=2) + "\n")


def compare_record(trainer: Trainer, before: Record, step: int) -> None:
    """Refuse to go on with other data, unless `force`: then it is said.

    Raises:
        CheckpointError: names each part that changed, and how.
    """
    now = trainer.data_record
    parts = [part for part in _PARTS if part in before or part in now]
    changes = {part: what_changed(before.get(part), now.get(part)) for part in parts}
    told = "; ".join(f"the {_PARTS[part]} {change}" for part, change in changes.items() if change is not None)
    if not told:
        return
    if not trainer.force:
        raise CheckpointError(
            f"since step {step}, the data have changed: {told}; the run would go on with other batches or scores",
            remedy="bring back the data as they were, begin a new run, or go on all the same with --force",
        )
    trainer.recorder.warn(f"since step {step}, the data have changed: {told}; forced to go on")
    write_record(trainer)
