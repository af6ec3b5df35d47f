"""TensorBoard's event file: a sequence of records, each with its length and checksums (the TFRecord format).

The messages are the `tensorboard` package's own; only the frame around them is written here. The
package's writer would bring 0.09 s of imports (and all of TensorFlow where that is installed), a thread, and
50 µs of CPU a record; this one writes a record with one system call, so that a killed process loses none.
"""

from __future__ import annotations

import functools
import itertools
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

from flambeau.run_folder.atomic import write_atomically

_HEADER = 12
"""Bytes before an event: uint64 length, uint32 checksum of it."""
_FOOTER = 4
"""Bytes after an event: uint32 checksum."""

_counter = itertools.count()


class EventFileWriter:
    """Writes serialised `Event` messages to a new file in `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names and never an old one again: the
        # time, to the microsecond, puts a resumed run's file behind the one before.
        host = os.uname().nodename
        name = f"events.out.tfevents.{time.time():017.6f}.{host}.{os.getpid()}.{next(_counter)}"
        self.path = folder / name
        self._file = self.path.open("xb", buffering=0)

    def write(self, event: bytes) -> None:
        """Append one record; it is with the operating system when this returns.

        Raises:
            OSError: it could not be written, e.g. for want of space; nothing is left of it in the file.
        """
        record = _frame(len(event)) + event + struct.pack("<I", masked_crc32c(event))
        start = self._file.tell()
        try:
            rest = memoryview(record)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(start)
            self._file.seek(start)
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def drop_events(folder: Path, drops: Callable[[bytes], bool]) -> None:
    """Take the events that `drops` says, and a half-written last record, out of all event files of a folder.

    A file from which nothing is dropped is not touched; another is replaced whole.
    """
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content = memoryview(path.read_bytes())
        kept: list[memoryview] = []
        position = 0
        while position + _HEADER <= len(content):
            end = position + _HEADER + int.from_bytes(content[position : position + 8], "little") + _FOOTER
            if end > len(content):
                break
            if not drops(bytes(content[position + _HEADER : end - _FOOTER])):
                kept.append(content[position:end])
            position = end
        if sum(map(len, kept)) < len(content):
            write_atomically(path, b"".join(kept))


@functools.lru_cache(maxsize=1024)
def _frame(length: int) -> bytes:
    # Most events of a run have one of a few lengths.
    header = struct.pack("<Q", length)
    return header + struct.pack("<I", masked_crc32c(header))


def masked_crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of `data`, rotated and shifted as TFRecord stores it."""
    crc = 0xFFFFFFFF
    table = _crc_table()
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@functools.cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)
