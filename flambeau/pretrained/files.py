"""Weights in files: safetensors, alone or in several files with an index, and what torch has saved.

A torch file is a pickle, which can run code. torch reads it here with `weights_only=True`, which builds tensors and
plain containers and refuses anything else (https://docs.pytorch.org/docs/stable/notes/serialization.html).
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from flambeau.checkpoint.shards import dtype_named
from flambeau.checkpoint.tensors_file import TORCH_CODES
from flambeau.config.start_points import TORCH_SUFFIXES
from flambeau.errors import UsageError
from flambeau.pretrained.weights import Stored, Weights

INDEX_SUFFIX = ".safetensors.index.json"
_DTYPES = {code: dtype_named(name) for name, code in TORCH_CODES.items() if hasattr(torch, name)}
_USUAL_KEYS = ("state_dict", "model", "model_state_dict", "module", "net", "network", "weights")


def read_file(file: Path, *, key: str | None = None, shown: str | None = None) -> Weights:
    """The weights in a file, by its ending.

    Args:
        key: of a torch file with several entries, the one that holds the weights.
        shown: what to call the file in messages; default: its path.

    Raises:
        UsageError: it cannot be read, or is not what its ending says.
    """
    shown = shown or str(file)
    if file.name.endswith(".safetensors"):
        return _read_safetensors([file], shown)
    if file.name.endswith(INDEX_SUFFIX):
        return _read_safetensors([file.parent / name for name in files_of_index(file, shown)], shown)
    if file.name.endswith(TORCH_SUFFIXES):
        return _read_torch(file, key, shown)
    raise UsageError(
        f"{shown} is no file of weights by its ending",
        remedy=f"it may end in .safetensors, {INDEX_SUFFIX}, {', '.join(TORCH_SUFFIXES)}",
    )


def find_weights(folder: Path) -> Path | None:
    """The safetensors weights in a folder that a library has saved: their index, or the one file."""
    found = [folder / f"model{INDEX_SUFFIX}", folder / "model.safetensors"]
    if present := [file for file in found if file.is_file()]:
        return present[0]
    single = sorted(folder.glob(f"*{INDEX_SUFFIX}")) or sorted(folder.glob("*.safetensors"))
    return single[0] if len(single) == 1 else None


def files_of_index(index: Path, shown: str) -> list[str]:
    """The names of the files that an index says the tensors lie in, beside it.

    Raises:
        UsageError: it is no index, or names a file elsewhere.
    """
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except OSError as error:
        raise UsageError(f"{shown} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{shown} is no index of safetensors files: it has no `weight_map`") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UsageError(f"{shown} names {name!r}, which is no safetensors file beside it")
    return names


def _read_safetensors(files: list[Path], shown: str) -> Weights:
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, Stored] = {}
    where: dict[str, Path] = {}
    opened: dict[Path, Any] = {}
    for file in files:
        try:
            # Open until the weights are let go: what was checked is what is read, even if the file is replaced.
            reader: Any = safe_open(str(file), framework="pt", device="cpu")
            opened[file] = reader
            for name in reader.keys():  # noqa: SIM118 (the library's reader is no mapping)
                piece = reader.get_slice(name)
                if piece.get_dtype() not in _DTYPES:
                    raise UsageError(f"{file}: '{name}' is of the type {piece.get_dtype()}, which is not read")
                tensors[name] = Stored(tuple(piece.get_shape()), _DTYPES[piece.get_dtype()])
                if name in where:
                    raise UsageError(f"{shown}: '{name}' lies in {where[name].name} and in {file.name}")
                where[name] = file
        except FileNotFoundError:
            raise UsageError(f"{file} does not exist") from None
        except (SafetensorError, OSError, ValueError) as error:
            raise UsageError(f"{file} is no whole safetensors file: {error}") from error

    def read(name: str) -> Tensor:
        tensor: Tensor = opened[where[name]].get_tensor(name)
        return tensor

    return Weights(shown, tensors, read, tuple(files))


def _read_torch(file: Path, key: str | None, shown: str) -> Weights:
    found = _load_torch(file, shown)
    state = _choose(found, key, shown)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    stored = {name: Stored(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    return Weights(shown, stored, tensors.__getitem__, (file,))


def _load_torch(file: Path, shown: str) -> Any:
    try:
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, ValueError):  # files of torch before 1.6 cannot be mapped
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"{shown} does not exist") from None
    except pickle.UnpicklingError as error:
        reason = str(error).strip().split("\n")
        what = next((line.strip() for line in reason if "Unsupported" in line or "GLOBAL" in line), reason[0])
        raise UsageError(
            f"{shown} holds more than tensors, and is not read: a pickle can run code when it is loaded ({what})",
            remedy="where you trust it, save its weights alone, in a program of your own: "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')",
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError) as error:
        text = str(error).strip().split("\n")[0]
        raise UsageError(f"{shown} is no whole torch file: {type(error).__name__}: {text}") from error


def _choose(found: object, key: str | None, shown: str) -> Mapping[str, Any]:
    """The state dict in what a torch file holds."""
    if not isinstance(found, Mapping):
        raise UsageError(f"{shown} holds a {type(found).__name__}, and no weights by name")
    entries: dict[str, Mapping[str, Any]] = {str(name): value for name, value in found.items() if _is_state(value)}
    if key is not None:
        if key not in entries:
            there = ", ".join(entries) or "none"
            raise UsageError(
                f"{shown} has no entry '{key}' that holds weights", remedy=f"entries with weights: {there}"
            )
        return entries[key]
    if _is_state(found):
        return found
    for usual in _USUAL_KEYS:
        if usual in entries:
            return entries[usual]
    if len(entries) == 1:
        return next(iter(entries.values()))
    if entries:
        raise UsageError(f"{shown} holds weights several times", remedy=f"say which by `key`: {', '.join(entries)}")
    raise UsageError(f"{shown} holds no weights by name: its entries are {', '.join(map(str, list(found)[:8]))}")


def _is_state(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether it holds tensors by name, and beside them at most what modules add of their own (`_extra_state`)."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return False
    others = [name for name, item in value.items() if not isinstance(item, Tensor)]
    return len(others) < len(value) and all(name.rpartition(".")[2] == "_extra_state" for name in others)
