"""Files that are there whole or not at all, whatever happens to the process or the machine."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Replace `path` by `content` (text as UTF-8) in one instant: a reader sees the old file or the new one.

    `durable` also waits until both are on the disk, so that a power cut cannot undo the write; leave it out
    for what is rewritten every few seconds. One writer at a time: the temporary name is fixed, so that a
    killed process leaves at most one stray file, which the next write takes over.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put the names in `folder` on the disk (a rename is not durable before)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
