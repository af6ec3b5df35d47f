"""One process at a time owns a run folder."""

from __future__ import annotations

import errno
import os
import re
import time
import warnings
import weakref
from pathlib import Path

from flambeau.errors import RunFolderError
from flambeau.run_folder.status import is_alive, this_host

# File systems that keep no locks (some Lustre and FUSE mounts) say so with one of these.
_UNSUPPORTED = frozenset([errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL])


GRACE = 5.0
"""Seconds that a lock is waited for whose process was killed: a child just made may hold it yet."""


class FolderLock:
    """An exclusive lock on a folder, given up by `release` or by the end of the process, however it ends."""

    def __init__(self, path: Path, *, take_over: bool = False) -> None:
        """Take the lock.

        Args:
            path: the lock file; made if it is missing, and left there.
            take_over: its holder is known to be lost: where it does not give the lock up, replace the file.

        Raises:
            RunFolderError: another process holds it; the message names the process and its machine.
        """
        import fcntl

        self._path = path
        self._open()
        deadline = time.monotonic() + GRACE
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self.is_held():
                    break
                self._close()  # it was replaced meanwhile
                self._open()
            except BlockingIOError:
                holder = os.pread(self._descriptor, 4096, 0).decode(errors="replace").strip()
                if (take_over or _is_going(holder)) and time.monotonic() < deadline:
                    time.sleep(0.01)
                    continue
                self._close()
                if take_over:
                    path.unlink(missing_ok=True)
                    self._open()
                    take_over = False
                    continue
                raise RunFolderError(
                    f"{path.parent} is in use by {holder or 'another process'}",
                    remedy="wait for it to end, or stop it (kill -TERM lets it save first)",
                ) from None
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    self._close()
                    raise
                warnings.warn(
                    f"{path.parent}: this file system keeps no locks, so nothing stops a second process from "
                    "training in the same folder",
                    stacklevel=4,
                )
                break
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"process {os.getpid()} on {this_host()}\n".encode(), 0)
        _held.add(self)

    def is_held(self) -> bool:
        """Whether the lock is still this process's: nobody has replaced the file."""
        try:
            return self._descriptor >= 0 and os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    def _open(self) -> None:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def release(self) -> None:
        """Let others take the folder."""
        _held.discard(self)
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _is_going(holder: str) -> bool:
    """Whether the lock is about to be free: its process is gone, or is just writing or erasing its name."""
    process = re.fullmatch(r"process (\d+) on (.*)", holder)
    return process is None or (process[2] == this_host() and not is_alive(int(process[1])))


_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _leave_in_child() -> None:
    # A forked data worker would share the lock and keep it for seconds after its trainer was killed, and a
    # resume right after would be refused. Closing the child's copy does not release the parent's lock.
    for lock in list(_held):
        lock._close()
    _held.clear()


os.register_at_fork(after_in_child=_leave_in_child)
