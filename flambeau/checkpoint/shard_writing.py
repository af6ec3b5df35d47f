"""Writing one checkpoint together: every process its pieces, and rank 0 all else and the name that makes it count.

`torch.distributed.checkpoint.save` leads: it gathers what every process has, hands the plan back, and tells all
processes if one of them failed, before and after the pieces are written.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from flambeau.checkpoint.publish import FileRecord, write_file
from flambeau.checkpoint.shards import INDEX, file_of, index_bytes
from flambeau.checkpoint.tensors_file import StoredTensor, safetensors_chunks
from flambeau.errors import CheckpointError

Finish = Callable[[dict[str, FileRecord]], None]
"""Makes a checkpoint of the files that all processes have written."""


def write_items(name: str, tensor: Any) -> list[WriteItem]:
    """What this process has of a sharded tensor, for `save`; nothing if its piece is empty."""
    items: list[WriteItem] = tensor.__create_write_items__(name, tensor)
    return [item for item in items if item.tensor_data is not None and item.tensor_data.chunk.sizes.numel()]


def save_together(
    folder: Path,
    items: list[WriteItem],
    copies: Mapping[str, StoredTensor],
    *,
    group: Any,
    rank: int,
    begin: Callable[[], None],
    finish: Finish,
) -> None:
    """Write the pieces of all processes into a directory. Every process of `group` calls it; the same happens to all.

    Args:
        folder: seen by all processes.
        items: what this process has.
        copies: the pieces by the tensors' names, in host memory.
        begin: rank 0's preparation, before anybody writes.
        finish: rank 0's completion, after all have written and flushed.

    Raises:
        CheckpointError, OSError, ...: what happened to the first process to which something happened.
    """
    writer = ShardWriter(folder, rank, begin, finish)
    try:
        save({}, storage_writer=writer, planner=_CopiesPlanner(items, copies), process_group=group)
    except CheckpointException as error:
        raise _first_failure(error) from error


class ShardWriter(StorageWriter):
    """Writes `rank-N.safetensors` for each process, and `shards.json`. Each file is flushed and read back."""

    def __init__(self, folder: Path, rank: int, begin: Callable[[], None], finish: Finish) -> None:
        self._folder = folder
        self._rank = rank
        self._begin = begin
        self._finish = finish

    def reset(self, checkpoint_id: Any = None) -> None:
        """A writer is for one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """All is known from the start."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """A plan of one process, as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On rank 0, before any process writes."""
        self._begin()
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this process's pieces."""
        done: Future[list[WriteResult]] = Future()
        done.set_result(self._write(plan, planner) if plan.items else [])
        return done

    def _write(self, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        name = file_of(self._rank)
        if not self._folder.is_dir():
            raise CheckpointError(
                f"process {self._rank} does not see the folder {self._folder}, which process 0 has made",
                remedy="keep the run on a file system that all machines share",
            )
        tensors: list[Any] = [planner.resolve_data(item) for item in plan.items]
        record = write_file(self._folder / name, safetensors_chunks(tensors))
        written = {"rank": self._rank, "size": record.size, "sha256": record.sha256}
        return [
            WriteResult(item.index, len(tensor.data), written) for item, tensor in zip(plan.items, tensors, strict=True)
        ]

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On rank 0, after all have written."""
        writers: dict[MetadataIndex, int] = {}
        records: dict[str, FileRecord] = {}
        for result in (result for of_rank in results for result in of_rank):
            rank = result.storage_data["rank"]
            writers[result.index] = rank
            records[file_of(rank)] = FileRecord(result.storage_data["size"], result.storage_data["sha256"])
        for name, record in records.items():
            if not (self._folder / name).is_file() or (self._folder / name).stat().st_size != record.size:
                raise CheckpointError(
                    f"process 0 does not see {self._folder / name}, which another process has written",
                    remedy="keep the run on a file system that all machines share",
                )
        tensors = {
            name: entry
            for name, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        records[INDEX] = write_file(self._folder / INDEX, [index_bytes(tensors, writers)])
        self._finish(records)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """No name is resolved to this writer."""
        return False


class _CopiesPlanner(DefaultSavePlanner):
    """Plans what was noted when the copies were taken: by now the tensors themselves have moved on."""

    def __init__(self, items: list[WriteItem], copies: Mapping[str, StoredTensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._items = items
        self._copies = copies

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan(self._items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Any:
        return self._copies[write_item.index.fqn]


def _first_failure(error: CheckpointException) -> Exception:
    """The failure of the lowest rank; where it was is in a note."""
    rank = min(error.failures)
    failure, stack = error.failures[rank]
    if not isinstance(failure, Exception):
        failure = CheckpointError(f"process {rank}: {failure!r}")
    failure.add_note(f"in process {rank}:\n{''.join(traceback.format_list(stack))}".rstrip())
    return failure
