"""Whether data are still what they were: a short digest, taken at the start of a run and compared at its resume."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch

from flambeau.data.in_memory import Fetches, as_fetching
from flambeau.data.reading import unwrap
from flambeau.data.streaming import is_stream
from flambeau.runtime.seeds import derive, host_generators_kept, seed_host

Mode = Literal["sampled", "full", "off"]
Fingerprint = dict[str, Any]
"""`samples` (or None), `kind`, and `digest` (None where nothing but the length is known)."""

_ROWS = 256
"""Rows that are read of data that give many at once ..."""
_ITEMS = 48
"""... and of data that are read one by one."""
_BYTES = 1 << 24
"""At most about so many bytes are read of samples at once."""


def fingerprint(dataset: Any, mode: Mode = "sampled") -> Fingerprint | None:
    """What is remembered of a dataset; None for none.

    Args:
        dataset: its samples are read as it gives them, without transforms.
        mode: `sampled`: what the dataset's own method `fingerprint()` says, if it has one, else the first sample, the
            last and some between, a few hundred at most; `full`: all are read; `off`: only their number.

    Of an iterable dataset, and of one that gives another sample each time it is asked, only the length is known.
    """
    if dataset is None:
        return None
    samples = len(dataset) if hasattr(dataset, "__len__") else None
    digest, kind = None, "length"
    if mode != "off":
        if mode != "full" and callable(own := getattr(dataset, "fingerprint", None)):
            digest, kind = str(own()), "own"
        elif samples is not None and not is_stream(dataset):
            digest, kind = _of_map_style(dataset, samples, full=mode == "full"), mode
        kind = kind if digest is not None else "length"
    return {"samples": samples, "kind": kind, "digest": digest}


def what_changed(before: Fingerprint | None, now: Fingerprint | None) -> str | None:
    """How data differ from what is remembered of them; None if they do not, as far as that is known."""
    if before is None or now is None:
        return None if before is now else f"{'were not there' if before is None else 'are gone'}"
    if before["samples"] != now["samples"]:
        return f"had {_counted(before['samples'])} and have {_counted(now['samples'])} now"
    if before["kind"] == now["kind"] and before["digest"] != now["digest"]:
        return f"have another content than they had (the {now['kind']} fingerprint differs)"
    return None


def _counted(samples: int | None) -> str:
    return "an unknown number of samples" if samples is None else f"{samples} sample{'s' * (samples != 1)}"


def _of_map_style(dataset: Any, size: int, *, full: bool) -> str | None:
    base, positions = unwrap(dataset)
    digest = hashlib.blake2b(digest_size=16)
    if not full and callable(own := getattr(base, "fingerprint", None)):
        _add(digest, [str(own()), positions])
        return digest.hexdigest()
    source = as_fetching(base)
    with host_generators_kept():
        if source is not None:
            _add_rows(digest, source, positions, size, full=full)
            return digest.hexdigest()
        if size and _read(base, positions, 0) != _read(base, positions, 0):
            return None  # it draws its samples with a generator of its own
        for index in _places(size, size if full else _ITEMS):
            digest.update(_read(base, positions, index))
    return digest.hexdigest()


def _add_rows(digest: Any, source: Fetches, positions: Any, size: int, *, full: bool) -> None:
    if not size:
        return
    places = np.arange(size)
    rows = places if positions is None else np.asarray(positions)
    seed_host(derive(0, "fingerprint"))
    sample = source.fetch(torch.from_numpy(rows[:1]))
    step = int(np.clip(_BYTES // max(1, _bytes_of(sample)), 1, _ROWS))
    chosen = rows if full else rows[_places(size, step)]
    for start in range(0, len(chosen), step):
        _add(digest, source.fetch(torch.from_numpy(chosen[start : start + step])))


def _places(size: int, number: int) -> list[int]:
    """The first, the last, and evenly between."""
    return sorted(set(np.linspace(0, size - 1, min(size, number)).round().astype(int).tolist())) if size else []


def _read(dataset: Any, positions: Any, index: int) -> bytes:
    """A digest of one sample, read under a seed of its own."""
    position = index if positions is None else int(positions[index])
    digest = hashlib.blake2b(digest_size=16)
    seed_host(derive(0, "fingerprint", index))
    try:
        _add(digest, dataset[position])
    except Exception as error:  # the run itself will say so, with the sample's number
        digest.update(type(error).__name__.encode())
    return digest.digest()


def _add(digest: Any, value: Any) -> None:
    """Everything of a sample that has a content: types and shapes too, so that no two samples look alike."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        digest.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    elif isinstance(value, np.ndarray | np.generic):
        if value.dtype.hasobject:
            _add(digest, value.tolist())
        else:
            digest.update(f"array {value.dtype} {value.shape};".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        digest.update(f"dict {len(value)};".encode())
        for key, item in value.items():
            _add(digest, str(key))
            _add(digest, item)
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)};".encode())
        for item in value:
            _add(digest, item)
    elif isinstance(value, str | bytes):
        content = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        digest.update(f"text {len(content)};".encode() + content)
    elif value is None or isinstance(value, bool | int | float):
        digest.update(f"{value!r};".encode())
    elif hasattr(value, "tobytes") and hasattr(value, "size"):  # an image of Pillow's
        digest.update(f"image {getattr(value, 'mode', '')} {value.size};".encode() + value.tobytes())
    else:
        digest.update(f"{type(value).__name__};".encode())


def _bytes_of(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(_bytes_of(item) for item in value.values())
    return sum(_bytes_of(item) for item in value) if isinstance(value, list | tuple) else 8
