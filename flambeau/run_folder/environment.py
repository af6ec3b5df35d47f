"""What a run was started on: interpreter, packages, machine; never the environment variables (secrets)."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flambeau.run_folder.status import this_host


def describe_environment(hardware: Mapping[str, Any], code: Mapping[str, Any] | None) -> dict[str, Any]:
    """The content of `environment.json`.

    Args:
        hardware: what the caller knows of its devices (names, memory, driver).
        code: the state of the git repository, None outside of one.
    """
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "host": this_host(),
        "cpu_count": _cpu_count(),
        "hardware": dict(hardware),
        "git": None if code is None else dict(code),
        "packages": installed_packages(sys.path),
    }


def installed_packages(search: Sequence[str]) -> dict[str, str]:
    """Name and version of every package installed on the path `search`, in the order of their names.

    Read from the names of the metadata folders: 1 ms, where importlib.metadata opens every file.
    """
    packages: dict[str, str] = {}
    for folder in search:
        try:
            names = os.listdir(folder)  # noqa: PTH208 (only the names are needed)
        except OSError:
            continue
        for name in names:
            match = re.fullmatch(r"(.+?)-([^-]+)(?:-.*)?\.(?:dist|egg)-info", name)
            if match:
                # The first folder on the path is the one that is imported from.
                packages.setdefault(re.sub(r"[-_.]+", "-", match[1]).lower(), match[2])
    return dict(sorted(packages.items()))


def _cpu_count() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def command_block(command: Sequence[str], folder: Path, when: str) -> str:
    """An entry of `command.txt`: a comment that says when and where, then the command as a shell takes it."""
    import shlex

    from flambeau.run_folder.masking import mask_command

    return f"# {when} on {this_host()}, in {folder}\n{shlex.join(mask_command(command))}\n"
