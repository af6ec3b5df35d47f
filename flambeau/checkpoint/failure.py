"""Why a save failed, in words for people."""

from __future__ import annotations

import errno
import os

from flambeau.checkpoint.publish import LostWriteError
from flambeau.checkpoint.reading import Checkpoint
from flambeau.errors import CheckpointError

_CAUSES = {
    errno.ENOSPC: (
        "the disk is full",
        "free some space, or keep fewer (checkpoint.keep_last, keep_every_steps)",
    ),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or keep fewer (checkpoint.keep_last)"),
    errno.EROFS: ("the file system is read-only", "a disk with errors is often remounted so: see dmesg"),
    errno.EIO: ("the disk reports an input/output error", "the disk may be failing: see dmesg"),
    errno.ESTALE: ("the network file system has lost the folder", None),
    errno.ENOENT: ("the folder was removed or renamed", None),
    errno.EFBIG: ("the file is larger than the file system or `ulimit -f` allows", None),
    errno.EMFILE: ("too many files are open", "raise `ulimit -n`, or use fewer workers"),
}
"""What an errno means for a save, and the remedy."""


def explained(what: str, error: Exception, left: Checkpoint | None) -> CheckpointError:
    """An error that says what failed, why, what is left and what to do; its cause is the original error."""
    cause, remedy = cause_of(error)
    whole = f"the newest whole checkpoint is {left.path}" if left else "there is no whole checkpoint yet"
    failure = CheckpointError(f"{what}: {cause}; {whole}", remedy=remedy)
    failure.__cause__ = error
    return failure


def cause_of(error: Exception) -> tuple[str, str | None]:
    """Why something could not be written, and the remedy if there is one."""
    remedy: str | None = None
    if isinstance(error, LostWriteError):
        cause, remedy = f"the disk lost a write ({error})", "the disk or its driver may be failing: see dmesg"
    elif isinstance(error, OSError) and error.errno is not None:
        cause, remedy = _CAUSES.get(error.errno, (os.strerror(error.errno), None))
        place = f": {error.filename}" if error.filename else ""
        cause += f" ({errno.errorcode.get(error.errno, error.errno)}{place})"
    elif isinstance(error, CheckpointError):
        cause, remedy = error.message, error.remedy
    else:
        cause = f"{type(error).__name__}: {error}"
    return cause, remedy
