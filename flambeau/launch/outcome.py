"""What became of the workers of one launcher, as files in a private folder that it names to them.

The exit status alone does not say it: to torchrun's agent a worker that was preempted has to look as one that is
done, or the agent would start it anew.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from flambeau.errors import EXIT_DONE, EXIT_PREEMPTED
from flambeau.run_folder.atomic import write_atomically

FOLDER = "FLAMBEAU_OUTCOME_DIR"
"""The environment variable that names the folder to the workers."""

Kind = Literal["done", "preempted", "error", "told", "echo"]
"""`error` is the worker's own; `told` that it was ended for a reason that lies elsewhere, and its text says which;
`echo` the broken connection that a worker sees when another is gone."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one worker ended."""

    rank: int
    kind: Kind
    status: int = EXIT_DONE
    """As the exit status of a command with one process would be."""
    summary: str = ""
    """One line: `ValueError: the message`."""
    text: str = ""
    """What is to be read on the terminal: the traceback, or the message of an error that is meant for people."""
    output: str | None = None
    """The file that holds what the worker printed."""
    time: float = field(default_factory=time.time)

    @property
    def is_good(self) -> bool:
        return self.status in (EXIT_DONE, EXIT_PREEMPTED)


class Outcomes:
    """The folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._run_folder = folder / "run-folder"
        self._restarting = folder / "restarting"

    @classmethod
    def from_environment(cls) -> Outcomes | None:
        """Of the launcher that started this process; None if it was not Flambeau's."""
        path = os.environ.get(FOLDER)
        return cls(Path(path)) if path and Path(path).is_dir() else None

    def report(self, outcome: Outcome) -> None:
        """Say how a worker ends."""
        write_atomically(self.folder / f"rank-{outcome.rank}.json", json.dumps(asdict(outcome)), durable=False)

    def read(self) -> dict[int, Outcome]:
        """What was reported since the last start, by rank."""
        found = [Outcome(**json.loads(path.read_bytes())) for path in self.folder.glob("rank-*.json")]
        return {outcome.rank: outcome for outcome in sorted(found, key=lambda outcome: outcome.rank)}

    def clear(self) -> None:
        """Forget the outcomes: the workers are about to be started."""
        for path in self.folder.glob("rank-*.json"):
            path.unlink()
        self._restarting.unlink(missing_ok=True)

    @property
    def run_folder(self) -> Path | None:
        """The folder of the run, once a worker has said so."""
        return Path(self._run_folder.read_text()) if self._run_folder.exists() else None

    @run_folder.setter
    def run_folder(self, path: Path) -> None:
        write_atomically(self._run_folder, str(path.resolve()), durable=False)

    @property
    def restarting(self) -> bool:
        """Whether the agent is stopping the workers to start them again, with more or fewer machines."""
        return self._restarting.exists()

    def announce_restart(self) -> None:
        self._restarting.touch()
