"""Which code a run was started from: the git commit, and what differs from it as a patch.

`git apply code.patch` on the recorded commit brings the code back, new files included. Files that hold
secrets by their name (`.env`, keys, credentials) are never written, and large ones are named, not copied.
"""

from __future__ import annotations

import fnmatch
import os
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_NEW_FILE = 256 * 1024
"""Bytes of an untracked file up to which it goes into the patch."""
MAX_NEW_FILES = 8 * 1024 * 1024
"""Bytes of all untracked files in the patch."""
MAX_BINARY = 1024 * 1024
"""Bytes of a changed binary file up to which it goes into the patch."""
MAX_CHANGED_LINES = 100_000
"""Changed lines of one tracked file up to which it goes into the patch."""
TIMEOUT = 15.0
"""Seconds that one git command may take; a run does not wait longer for a slow disk."""

_SECRET_FILES = (
    *(".env", ".env.*", "*.env", ".envrc", ".netrc", ".pypirc", ".npmrc", ".git-credentials"),
    *("*.pem", "*.key", "*.p12", "*.pfx", "id_rsa*", "id_ecdsa*", "id_ed25519*"),
    *(
        "credentials*",
        "secret.*",
        "secrets.*",
        "*service-account*.json",
        "*service_account*.json",
        "kaggle.json",
    ),
)


@dataclass
class CodeState:
    """The code of a project at one moment."""

    commit: str | None = None
    """None before the first commit: the patch then starts from nothing."""
    branch: str | None = None
    """None on a detached head."""
    dirty: bool = False
    """Something differs from the commit, untracked files included."""
    left_out: list[str] = field(default_factory=list)
    """What differs and is not in the patch, each with the reason."""
    problem: str | None = None
    """Why git could not be asked; everything else is then unknown."""
    patch: bytes = b""

    def summary(self) -> dict[str, Any]:
        """All but the patch, for `environment.json`."""
        if self.problem is not None:
            return {"problem": self.problem}
        return {
            "commit": self.commit,
            "branch": self.branch,
            "dirty": self.dirty,
            **({"not_in_patch": self.left_out} if self.left_out else {}),
        }


class _GitError(Exception):
    pass


def read_code_state(project: Path, *, exclude: Iterable[Path] = ()) -> CodeState | None:
    """The state of the git repository that `project` lies in, or None outside of one.

    Untracked files below `exclude`, and those inside run folders, are no part of it. Takes two to four git
    commands, about 15 ms in a small repository.
    """
    try:
        top = Path(os.fsdecode(_git(project, "rev-parse", "--show-toplevel").rstrip(b"\n")))
        return _read(top, [path.resolve() for path in exclude])
    except _GitError as error:
        reason = str(error)
        return None if "not a git repository" in reason else CodeState(problem=reason)


def _read(top: Path, exclude: list[Path]) -> CodeState:
    state = CodeState()
    changed, untracked = False, []
    for entry in _status(top, state):
        if entry.startswith(b"# branch.oid "):
            oid = entry.removeprefix(b"# branch.oid ").decode()
            state.commit = None if oid == "(initial)" else oid
        elif entry.startswith(b"# branch.head "):
            head = os.fsdecode(entry.removeprefix(b"# branch.head "))
            state.branch = None if head == "(detached)" else head
        elif entry.startswith(b"? "):
            untracked.append(entry[2:])
        elif not entry.startswith(b"#"):
            changed = True
    patches = [_tracked_changes(top, state)] if changed else []
    patches += _new_files(top, untracked, exclude, state)
    state.patch = b"".join(patches)
    state.dirty = changed or bool(state.patch) or bool(state.left_out)
    return state


def _status(top: Path, state: CodeState) -> list[bytes]:
    options = ["--porcelain=v2", "--branch", "-z", "--no-renames", "--ignore-submodules=all"]
    try:
        output = _git(top, "status", *options, "--untracked-files=all")
    except _GitError as error:
        if "longer than" not in str(error):
            raise
        output = _git(top, "status", *options, "--untracked-files=no")
        state.left_out.append("untracked files (listing them takes too long; ignore data in .gitignore)")
    return [entry for entry in output.split(b"\0") if entry]


def _tracked_changes(top: Path, state: CodeState) -> bytes:
    """The patch of changed tracked files."""
    # In a repository without a commit everything is compared with the empty tree.
    base = state.commit or _git(top, "hash-object", "-t", "tree", os.devnull).decode().strip()
    options = ["--no-renames", "--ignore-submodules=all", "--no-ext-diff", "--no-textconv"]
    leave_out = []
    for entry in _git(top, "diff", "--numstat", "-z", *options, base).split(b"\0"):
        if not entry:
            continue
        added, removed, name = entry.split(b"\t", 2)
        reason = _reason_to_leave_out(top, name, added, removed)
        if reason is not None:
            path = os.fsdecode(name)
            leave_out.append(f":(exclude,top,literal){path}")
            state.left_out.append(f"{path} ({reason})")
    plain = ["--binary", "--full-index", "--no-color", "--src-prefix=a/", "--dst-prefix=b/", "-U3"]
    return _git(top, "diff", *options, *plain, base, "--", ":/", *leave_out)


def _reason_to_leave_out(top: Path, name: bytes, added: bytes, removed: bytes) -> str | None:
    if _is_secret_file(name):
        return "may hold secrets"
    if added == b"-":
        path = top / os.fsdecode(name)
        return "large binary file" if path.is_file() and path.stat().st_size > MAX_BINARY else None
    return "too many changed lines" if int(added) + int(removed) > MAX_CHANGED_LINES else None


def _new_files(top: Path, names: list[bytes], exclude: list[Path], state: CodeState) -> list[bytes]:
    """One patch for each untracked text file of moderate size."""
    patches: list[bytes] = []
    total = 0
    in_run_folder: dict[Path, bool] = {}
    for name in names:
        path = top / os.fsdecode(name)
        if any(path.is_relative_to(folder) for folder in exclude):
            continue
        if _below_run_folder(path.parent, top, in_run_folder):
            continue
        content, mode, reason = _read_new_file(path, name)
        if reason is None and total + len(content) > MAX_NEW_FILES:
            reason = "too much in all"
        if reason is None:
            total += len(content)
            patches.append(new_file_patch(name, content, mode))
        else:
            state.left_out.append(f"{os.fsdecode(name)} ({reason})")
    return patches


def _read_new_file(path: Path, name: bytes) -> tuple[bytes, str, str | None]:
    """Content, git mode, and the reason to leave the file out if there is one."""
    if name.endswith(b"/"):
        return b"", "", "a repository of its own"
    if _is_secret_file(name):
        return b"", "", "may hold secrets"
    try:
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            return os.fsencode(path.readlink()), "120000", None
        if not stat.S_ISREG(info.st_mode):
            return b"", "", "not a file"
        if info.st_size > MAX_NEW_FILE:
            return b"", "", "large"
        content = path.read_bytes()
    except OSError as error:
        return b"", "", error.strerror or "cannot be read"
    if b"\0" in content:
        return b"", "", "not text"
    return content, "100755" if info.st_mode & stat.S_IXUSR else "100644", None


def new_file_patch(name: bytes, content: bytes, mode: str) -> bytes:
    """The patch that makes a new text file, as `git diff` would write it."""
    old, new = _quote(b"a/" + name), _quote(b"b/" + name)
    head = b"diff --git %b %b\nnew file mode %b\n" % (old, new, mode.encode())
    if not content:
        return head + b"index %b..e69de29bb2d1d6434b8b29ae775ad8c2e48c5391\n" % (b"0" * 40)
    lines = content.split(b"\n")
    ends_whole = lines[-1] == b""
    if ends_whole:
        lines.pop()
    body = b"".join(b"+%b\n" % line for line in lines)
    tail = b"" if ends_whole else b"\\ No newline at end of file\n"
    return head + b"--- /dev/null\n+++ " + new + b"\n@@ -0,0 +1,%d @@\n" % len(lines) + body + tail


def _quote(name: bytes) -> bytes:
    """A path as git quotes it: like a C string where it holds more than plain characters."""
    if all(0x20 <= byte < 0x7F and byte not in b'"\\' for byte in name):
        return name
    escaped = (
        b"\\%c" % byte if byte in b'"\\' else b"%c" % byte if 0x20 <= byte < 0x7F else b"\\%03o" % byte for byte in name
    )
    return b'"' + b"".join(escaped) + b'"'


def _is_secret_file(name: bytes) -> bool:
    base = os.fsdecode(name).rpartition("/")[2].lower()
    if base.endswith(".py"):
        return False  # secrets.py is a module about them; without its code the patch is worth little
    return any(fnmatch.fnmatchcase(base, pattern) for pattern in _SECRET_FILES)


def _below_run_folder(folder: Path, top: Path, known: dict[Path, bool]) -> bool:
    if folder == top or top not in folder.parents:
        return False
    if folder not in known:
        is_run = (folder / "status.json").exists() and (folder / "environment.json").exists()
        known[folder] = is_run or _below_run_folder(folder.parent, top, known)
    return known[folder]


def _git(folder: Path, *arguments: str) -> bytes:
    # The index is not refreshed on the disk (another git may be at work), and no monitor is started.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", "-c", "diff.autoRefreshIndex=false"]
    try:
        done = subprocess.run(
            [*command, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )
    except FileNotFoundError:
        raise _GitError("git is not installed") from None
    except subprocess.TimeoutExpired:
        raise _GitError(f"git {arguments[0]} took longer than {TIMEOUT:.0f} s") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").split("\n")
        raise _GitError("; ".join(filter(None, lines))[:500] or f"git {arguments[0]} failed")
    return done.stdout
