"""The checkpoints of a run whose weights lie in pieces over several processes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import distributed as dist

from flambeau.checkpoint import publish
from flambeau.checkpoint.failure import explained
from flambeau.checkpoint.reading import FORMAT_OF_MANY, Checkpoint, NewerFormatError
from flambeau.checkpoint.retention import Mode
from flambeau.checkpoint.store import CheckpointStore, name_of
from flambeau.checkpoint.tensors_file import StoredTensor
from flambeau.checkpoint.tree import SHARDS, encode
from flambeau.config.sections import CheckpointSettings
from flambeau.errors import CheckpointError
from flambeau.runtime.shards import local_part
from flambeau.runtime.world import World

TIMEOUT = timedelta(hours=2)
"""How long the processes wait for the slowest disk among them."""


class ShardedStore(CheckpointStore):
    """As `CheckpointStore`, written by all processes together: every method is called by all of them, at the same step.

    Each process copies its pieces to host memory, and a thread writes them. Rank 0 writes the rest, publishes, and
    removes what need not be kept. A save that fails in one process fails in all, and leaves nothing; all hear of it at
    the same place: `failed` says nothing of a save that is under way.

    Args:
        folder: seen by all processes; made at the first save.
        settings, mode, warn: see `CheckpointStore`; rank 0 warns.
        world: the processes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settings: CheckpointSettings,
        mode: Mode = "max",
        warn: Callable[[str], None],
        world: World,
    ) -> None:
        super().__init__(folder, settings=settings, mode=mode, warn=warn)
        self._world = world
        # Of its own: the thread's messages must not mix with those of the training.
        self._group: Any = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self._outcome: CheckpointError | None = None
        """Of the save under way; what `failed` tells after the thread was joined."""
        self._scores: dict[int, float | None] = {}
        """Of the steps that are saved as this process knows, which is what all of them know."""

    def save(
        self, step: int, state: Mapping[str, Any], *, score: float | None = None, flush: Sequence[Path] = ()
    ) -> None:
        """Save a state: copy it now, write it in the background. See `CheckpointStore.save`.

        Args:
            state: may hold sharded tensors. All else is rank 0's.
        """
        from flambeau.checkpoint.shard_writing import write_items

        self._join()
        if step in self._scores and score in (None, self._scores[step]) and step not in self._for_good:
            return
        tree, leaves = encode(state, sharded=True)
        items = []
        mine = [leaf for leaf in leaves if leaf.file != SHARDS] if self._world.is_main else []
        for leaf in leaves:
            if leaf.file == SHARDS and (own := write_items(leaf.name, leaf.value)):
                items += own
                mine.append(replace(leaf, value=local_part(leaf.value), node={}))
        tensors = self._copies.take(mine)
        copies = {stored.name: stored for stored in tensors.pop(SHARDS, [])}
        text = json.dumps(tree, allow_nan=False, separators=(",", ":")).encode()
        self._thread = threading.Thread(
            target=self._write_together,
            args=(step, score, text, tensors, items, copies, tuple(flush)),
            name="flambeau-checkpoint",
        )
        self._thread.start()

    def _join(self) -> None:
        super()._join()
        if self._outcome is not None:
            self._failure, self._outcome = self._outcome, None

    def _first_whole(self, candidates: Callable[[], list[str]]) -> Checkpoint | None:
        self._join()
        world = self._world
        for name, path in world.broadcast(self._listed(candidates) if world.is_main else None):
            try:
                return self._verified(name, Path(path))
            except NewerFormatError:
                raise
            except CheckpointError as error:
                if world.is_main and name not in self._passed_over:
                    self._warn(f"{error}; it is passed over")
                self._passed_over.add(name)
        return None

    def _listed(self, candidates: Callable[[], list[str]]) -> list[tuple[str, str]]:
        directories = self._directories()
        return [(name, str(directories[name])) for name in candidates() if name in directories]

    def _verified(self, name: str, path: Path) -> Checkpoint:
        """Each process reads a share of the files, and all come to the same judgement."""
        world = self._world
        checkpoint, fault = None, None
        try:
            checkpoint = self._open(name, path)
            checkpoint.verify(world.rank, world.size)
        except CheckpointError as error:
            fault = [isinstance(error, NewerFormatError), error.message, error.remedy]
        for found in world.gather(fault):
            if found is not None:
                newer, message, remedy = found
                raise (NewerFormatError if newer else CheckpointError)(message, remedy=remedy)
        assert checkpoint is not None
        self._whole[name] = checkpoint
        self._scores[checkpoint.step] = checkpoint.score
        return checkpoint

    # What follows runs in the background thread.

    def _write_together(
        self,
        step: int,
        score: float | None,
        tree: bytes,
        tensors: Mapping[str, list[StoredTensor]],
        items: list[Any],
        copies: Mapping[str, StoredTensor],
        flush: Iterable[Path],
    ) -> None:
        from flambeau.checkpoint.shard_writing import save_together

        name = name_of(step)
        temporary = self.folder / f"{publish.TEMPORARY}{name}"

        def finish(written: dict[str, publish.FileRecord]) -> None:
            self._complete(temporary, step, score, tree, tensors, flush, written, FORMAT_OF_MANY)
            try:
                publish.settle(self.folder / name)
                self._prune(step)
            except Exception as error:
                raise _InPlaceError(error) from error

        try:
            save_together(
                temporary,
                items,
                copies,
                group=self._group,
                rank=self._world.rank,
                begin=lambda: self._begin(temporary),
                finish=finish,
            )
            self._scores[step] = score
        except _InPlaceError as error:
            self._scores[step] = score
            what = f"the checkpoint of step {step} is in place, but to flush it or to remove older ones failed"
            self._outcome = self._told(what, error.args[0])
        except Exception as error:  # whatever it is, the training thread has to hear of it
            if self._world.is_main:
                publish.discard(temporary)
            self._outcome = self._told(f"the checkpoint of step {step} was not saved", error)

    def _told(self, what: str, error: Exception) -> CheckpointError:
        if self._world.is_main:
            return explained(what, error, self._left())
        return CheckpointError(f"{what}: {error}")


class _InPlaceError(Exception):
    """What went wrong after a checkpoint got its name."""
