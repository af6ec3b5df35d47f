"""The project that a command runs in, and the configurations that it can name."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

SHIPPED = Path(__file__).resolve().parents[1] / "configs"
"""The configurations that come with Flambeau."""

SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Project:
    """A folder with configurations under `configs/` and parts in its Python files."""

    root: Path

    @property
    def config_folders(self) -> list[Path]:
        """Where a configuration's name is looked up, in order: the project's own, then Flambeau's."""
        return [self.root / "configs", SHIPPED]

    def config_names(self) -> list[str]:
        """Every configuration that can be named here, without suffix: `lenet`, `experiments/wide`."""
        found = [path.relative_to(folder) for folder in self.config_folders for path in folder.rglob("*")]
        return sorted(
            {
                path.with_suffix("").as_posix()
                for path in found
                if path.suffix in SUFFIXES and not any(part.startswith(".") for part in path.parts)
            }
        )

    def activate(self) -> None:
        """Makes the project's own modules importable; for the moment at which parts are built."""
        from flambeau.registry import import_roots

        for folder in reversed(import_roots(self.root)):
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))


def find_project(start: Path | None = None) -> Project:
    """The project around a folder (default: the working directory).

    The nearest folder upwards that holds `configs/`, or a `pyproject.toml` with a table `[tool.flambeau]`; if
    there is none, the folder itself. The home folder and the root of the disk, which hold more than one
    project, count only if the command runs right there.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *(parent for parent in start.parents if parent not in (Path.home(), Path("/")))):
        if (folder / "configs" != SHIPPED and (folder / "configs").is_dir()) or _declares(folder):
            return Project(folder)
    return Project(start)


def _declares(folder: Path) -> bool:
    try:
        text = (folder / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return re.search(r"^\s*\[tool\.flambeau[\].]", text, re.MULTILINE) is not None
