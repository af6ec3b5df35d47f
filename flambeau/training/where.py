"""Where a run is kept: the folder that a caller gave, or the one that a trainer made in Python takes for itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from flambeau.run_folder import RunFolder
from flambeau.runtime.devices import describe_hardware
from flambeau.runtime.world import World


@contextmanager
def run_folder_of(
    run_dir: RunFolder | Path | str | None, resume: bool, device: torch.device, world: World
) -> Iterator[RunFolder | None]:
    """The folder of a run, for as long as it is trained.

    A `RunFolder` is its caller's: locked and described by them. A path is made (or, to resume, found again), locked
    here, and gets the record of how the run was started. Of several processes, rank 0 does so for all.

    Raises:
        RunFolderError: the path is taken, or another process owns it.
    """
    if run_dir is None or isinstance(run_dir, RunFolder):
        yield run_dir
        return
    path = Path(run_dir)
    if not world.is_main:
        world.barrier()
        yield RunFolder(path)
        return
    again = resume and RunFolder(path).status_file.exists()
    folder = RunFolder.open(path) if again else RunFolder.create(path.parent, path.name, path=path)
    command, hardware = ["python", *sys.argv], describe_hardware(device)
    with folder.lock():
        if again:
            folder.write_resume(command, hardware)
        else:
            folder.write_start(None, command, hardware)
        world.barrier()
        yield folder
