"""Putting a directory on disk whole or not at all.

A directory is written beside its final name, each file flushed to the disk and read back, the directory
flushed, renamed to its final name, and the parent flushed. Whenever the process or the machine stops, a
reader finds the directory whole under its final name or not there. (Pillai et al., "All File Systems Are Not
Created Equal", OSDI 2014, on why each flush is needed.)
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TEMPORARY = ".tmp-"
"""Prefix of a directory that is being written."""
REPLACED = ".replaced-"
"""Prefix of a directory whose successor of the same name is being put in place; whole."""
DISCARDED = ".old-"
"""Prefix of a directory that is being removed."""

_BLOCK = 1 << 20
"""Bytes below which pieces are gathered into one write."""
_LARGEST_WRITE = 1 << 26
"""Bytes of one system call at most."""


class LostWriteError(Exception):
    """What was read back from the disk is not what was written."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size in bytes and SHA-256 (hexadecimal) of a file."""

    size: int
    sha256: str


def write_file(path: Path, chunks: Iterable[memoryview | bytes]) -> FileRecord:
    """Write a new file, flush it to the disk, read it back, and give its size and hash.

    Raises:
        OSError: with the errno of the call that failed.
        LostWriteError: the file does not hold what was written.
    """
    writer = _HashedWriter(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    try:
        for chunk in chunks:
            writer.write(chunk)
        record = writer.finish()
    except OSError as error:
        error.filename = str(path)  # `write` and `fsync` know only a number
        raise
    finally:
        os.close(writer.descriptor)
    found = record_of(path)
    if found != record:
        raise LostWriteError(
            f"{path.name}: {record.size} bytes were written, and the {found.size} read back are not the same"
        )
    return record


def record_of(path: Path) -> FileRecord:
    """Size and hash of an existing file."""
    with path.open("rb", buffering=0) as file:
        return FileRecord(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


class _HashedWriter:
    """Writes and hashes a stream of pieces; small ones are gathered."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._hash = hashlib.sha256()
        self._size = 0
        self._gathered = bytearray()

    def write(self, chunk: memoryview | bytes) -> None:
        if len(chunk) < _BLOCK:
            self._gathered += chunk
            if len(self._gathered) >= _BLOCK:
                self._flush()
            return
        self._flush()
        self._put(memoryview(chunk))

    def finish(self) -> FileRecord:
        self._flush()
        os.fsync(self.descriptor)
        if hasattr(os, "posix_fadvise"):
            # Forget the pages, so that reading back asks the disk and not the memory that was just filled.
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return FileRecord(self._size, self._hash.hexdigest())

    def _flush(self) -> None:
        if self._gathered:
            self._put(memoryview(self._gathered))
            self._gathered = bytearray()

    def _put(self, data: memoryview) -> None:
        self._hash.update(data)
        self._size += len(data)
        while data:
            data = data[os.write(self.descriptor, data[:_LARGEST_WRITE]) :]


def publish(temporary: Path, final: Path) -> None:
    """Give a written directory its final name, in place of one that has it; `settle` completes it."""
    flush(temporary)
    if final.exists():
        # Two renames, since none replaces a full directory; in between, `published` finds the one set aside.
        final.rename(_replaced(final))
    temporary.rename(final)


def settle(final: Path) -> None:
    """Make sure that a new name outlives a power cut; only then let go of what had it before."""
    flush(final.parent)
    if _replaced(final).exists():
        shutil.rmtree(_replaced(final))


def _replaced(final: Path) -> Path:
    return final.with_name(REPLACED + final.name)


def published(folder: Path) -> dict[str, Path]:
    """The directories of a folder under their final names, wherever a crash may have left them."""
    try:
        paths = list(folder.iterdir())
    except FileNotFoundError:
        return {}
    found = {path.name: path for path in paths if not path.name.startswith(".")}
    for path in paths:
        if path.name.startswith(REPLACED):
            found.setdefault(path.name.removeprefix(REPLACED), path)
    return found


def tidy(folder: Path) -> None:
    """Finish or undo what a crash interrupted. Only for the one process that writes the folder."""
    for path in list(folder.iterdir()):
        final = path.with_name(path.name.removeprefix(REPLACED))
        if path.name.startswith(REPLACED) and not final.exists():
            path.rename(final)
        elif path.name.startswith((TEMPORARY, REPLACED, DISCARDED)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def remove(paths: Iterable[Path]) -> None:
    """Remove directories so that none is ever seen half under its final name."""
    discarded = []
    for path in paths:
        aside = path.with_name(DISCARDED + path.name)
        path.rename(aside)
        discarded.append(aside)
    if discarded:
        flush(discarded[0].parent)  # else a power cut could bring back the name, and not the files
    for aside in discarded:
        shutil.rmtree(aside)


def discard(temporary: Path) -> None:
    """Remove what a failed save has left, as far as the disk lets us; the next save tries again."""
    with contextlib.suppress(OSError):
        shutil.rmtree(temporary)


def point(link: Path, target: str | None) -> None:
    """Make a relative symbolic link, or turn it to another target, in one step; None removes it."""
    if target is None:
        link.unlink(missing_ok=True)
        return
    if link.is_symlink() and link.readlink() == Path(target):
        return
    fresh = link.with_name(f"{TEMPORARY}{link.name}")
    fresh.symlink_to(target)
    fresh.rename(link)


def flush(path: Path) -> None:
    """Flush a file or directory to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no flush of directories
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
