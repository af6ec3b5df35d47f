"""The files below a folder that a pattern matches: the same list on every machine, and remembered."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from flambeau.errors import UsageError
from flambeau.run_folder.atomic import write_atomically

_FORMAT = 1
_SETTLED = 2.0
"""Seconds that folders must be unchanged before their listing is remembered: a change within a clock's tick of the
listing would not show in a folder's time."""


def list_files(root: Path, pattern: re.Pattern[str], *, refresh: bool = False, cache: Path | None = None) -> list[str]:
    """The files below `root` whose path relative to it, with forward slashes, the pattern matches as a whole; sorted.

    Names that begin with a dot are left out, and links are followed. The list is remembered in `cache` (default:
    `$XDG_CACHE_HOME/flambeau/listings`) with the time of every folder in it: a file that comes or goes changes its
    folder's. Then only the folders are looked at, not each file.

    Args:
        refresh: list anew, whatever is remembered.

    Raises:
        UsageError: `root` is no folder.
    """
    if not root.is_dir():
        raise UsageError(f"there is no folder {root}")
    key = hashlib.blake2b(f"{root.resolve()}\0{pattern.pattern}".encode("utf-8", "surrogatepass"), digest_size=16)
    file = (cache or _cache_folder()) / f"{key.hexdigest()}.json"
    remembered = None if refresh else _remembered(file, root, pattern)
    if remembered is not None:
        return remembered
    begun = time.time()
    files, folders = _walk(root)
    found = sorted(path for path in files if pattern.fullmatch(path))
    if all(modified / 1e9 < begun - _SETTLED for modified in folders.values()):
        content = {"format": _FORMAT, "root": str(root.resolve()), "pattern": pattern.pattern}
        _remember(file, {**content, "folders": folders, "files": found})
    return found


def compile_pattern(text: str, *, regex: bool) -> re.Pattern[str]:
    """A pattern of relative paths: a regular expression, or a glob.

    In a glob, `*` and `?` stay within one folder's name, `**` stands for any folders, `[abc]` for one of these
    characters, `{jpg,png}` for one of these texts.

    Raises:
        UsageError: it is no regular expression, or a brace or bracket is not closed.
    """
    try:
        return re.compile(text if regex else _regex_of(text))
    except re.error as error:
        kind = "regular expression" if regex else "pattern"
        raise UsageError(f"'{text}' is no {kind}: {error}") from error


def _regex_of(glob: str) -> str:
    pieces = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")"}
    regex, depth = "", 0
    for token in re.findall(r"\*\*/|\*\*|\[!?\]?[^\]]*\]|.", glob, re.DOTALL):
        depth += (token == "{") - (token == "}")
        if token == "," and depth:
            regex += "|"
        elif len(token) > 1 and token[0] == "[":
            regex += (
                "[" + ("^" if token[1] == "!" else "") + re.sub(r"([\\\[^])", r"\\\1", token[1:-1].lstrip("!")) + "]"
            )
        else:
            regex += pieces.get(token, re.escape(token))
    return regex


def _walk(root: Path) -> tuple[list[str], dict[str, int]]:
    """All files, and the time of each folder, by relative path; a folder that links lead round to is read once."""
    files: list[str] = []
    folders: dict[str, int] = {}
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        status = (root / folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[folder] = status.st_mtime_ns
        with os.scandir(root / folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append(path)
                elif entry.is_file():
                    files.append(path)
    return files, folders


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "flambeau" / "listings"


def _remembered(file: Path, root: Path, pattern: re.Pattern[str]) -> list[str] | None:
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        same = (content["format"], content["root"], content["pattern"]) == (
            _FORMAT,
            str(root.resolve()),
            pattern.pattern,
        )
        folders, files = content["folders"], content["files"]
        if not same or not all(isinstance(path, str) and pattern.fullmatch(path) for path in files):
            return None
        if any((root / folder).stat().st_mtime_ns != modified for folder, modified in folders.items()):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # nothing is remembered, or somebody else's file lies there
    return list(files)


def _remember(file: Path, content: dict[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(content), durable=False)
    except (OSError, UnicodeEncodeError):
        return  # a home that cannot be written to: it is listed anew each time
