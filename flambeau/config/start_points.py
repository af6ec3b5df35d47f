"""The section `pretrained:`: its parts, where each takes its weights from, and what can be judged without torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

from flambeau.config.types import Fault

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
"""Endings of the files that torch writes: archives of a pickle and of tensors."""
_SECTION = "pretrained"
_NAME = r"[A-Za-z0-9][\w.-]*"
_HUB = re.compile(rf"hf://({_NAME}/{_NAME})(?:@([^/]+))?(?:/(.+))?")


@dataclass(frozen=True)
class Place:
    """Where weights lie, as a path says it."""

    kind: Literal["local", "hub", "timm"]
    name: str
    """The path, the repository (`org/name`) or timm's name of a model."""
    revision: str | None = None
    """Branch, tag or commit of a repository on the hub; default: its main branch."""
    file: str | None = None
    """The file in the repository; default: its safetensors weights."""


def is_single(section: Mapping[Any, Any]) -> bool:
    """Whether a mapping is one start point, not several by label."""
    return any(not isinstance(value, Mapping) and value is not None for value in section.values())


def start_points(section: Any) -> Iterator[tuple[str, Any]]:
    """The start points of a section, each with its dotted key; those that were set to null are left out."""
    if isinstance(section, Mapping) and is_single(section):
        yield _SECTION, section
        return
    entries = enumerate(section) if isinstance(section, list) else (section or {}).items()
    for own, part in entries:
        if part is not None:
            yield f"{_SECTION}.{own}", part


def read_place(path: str) -> Place:
    """What a path names.

    Raises:
        ValueError: it is none; says what it should look like.
    """
    scheme, found, rest = path.partition("://")
    if not found:
        if not path:
            raise ValueError("the path is empty")
        return Place("local", path)
    if scheme == "timm":
        if not re.fullmatch(_NAME, rest):
            raise ValueError(f"{path!r} does not name a model of timm; write timm://resnet18.a1_in1k")
        return Place("timm", rest)
    if scheme == "hf":
        matched = _HUB.fullmatch(path)
        if matched is None or (matched[3] and ".." in matched[3].split("/")):
            raise ValueError(f"{path!r} does not name a repository; write hf://org/name[@revision][/file.safetensors]")
        return Place("hub", matched[1], unquote(matched[2]) if matched[2] else None, matched[3])
    raise ValueError(f"nothing is read from {scheme}://; fetch the file, or take hf:// or timm://")


def faults_of_start_point(part: Mapping[str, Any]) -> list[Fault]:
    """What is wrong with the values of one start point beside their types."""
    faults: list[Fault] = []
    path = part.get("path")
    place = None
    if isinstance(path, str) and "${" not in path:
        try:
            place = read_place(path)
        except ValueError as error:
            message, _, remedy = str(error).partition("; ")
            faults.append(Fault(("path",), message, remedy or None))
    rules = part.get("map")
    for pattern, replacement in rules.items() if isinstance(rules, Mapping) else ():
        if isinstance(replacement, str | None) and (fault := fault_of_rule(str(pattern), replacement or "")):
            faults.append(Fault(("map", str(pattern)), fault))
    if place is not None:
        faults += _unread(part, place)
    return faults


def fault_of_rule(pattern: str, replacement: str) -> str | None:
    """Why a rule of `map` cannot be applied, or None."""
    if not pattern.startswith("^"):
        return None
    try:
        re.compile(pattern).sub(replacement, "")  # refuses groups that there are not, whether or not it matches
    except (re.error, IndexError) as error:
        return f"is no regular expression with a replacement that fits: {error}"
    return None


def _unread(part: Mapping[str, Any], place: Place) -> Iterator[Fault]:
    """Settings that nothing reads, given where the weights come from."""
    is_file = place.kind != "local" or place.name.endswith((".safetensors", ".json", *TORCH_SUFFIXES))
    for key in ("checkpoint", "weights"):
        if is_file and part.get(key) not in (None, "auto"):
            yield Fault((key,), "nothing reads this value: only a run or a checkpoint has it", "remove it")
    if part.get("key") is not None and not (place.file or place.name).endswith(TORCH_SUFFIXES):
        yield Fault(("key",), "nothing reads this value: only a torch file has entries", "remove it")
