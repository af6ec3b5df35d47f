"""The run folder: its files by name, and who may write them when."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from flambeau.errors import RunFolderError
from flambeau.run_folder.atomic import write_atomically
from flambeau.run_folder.status import Status, StatusFile, now, read_status, state_now, this_host

JOB = "job"
"""The one thing that a run folder may hold before its run begins: the script and the log of a scheduler's job."""


class RunFolder:
    """One run's folder, made by `create` or found again by `open`.

    Making and opening are for anyone; what writes (`write_start`, `write_resume`, `update_status`) is for the
    process that holds `lock()`.
    """

    def __init__(self, path: Path) -> None:
        """Name the files of the folder `path`; nothing is read or written. See `create` and `open`."""
        self.path = path
        self.config_file = path / "config.yaml"
        self.command_file = path / "command.txt"
        self.environment_file = path / "environment.json"
        self.patch_file = path / "code.patch"
        self.data_file = path / "data.json"
        self.pretrained_file = path / "pretrained.json"
        self.log_file = path / "log.txt"
        self.metrics_file = path / "metrics.jsonl"
        self.timing_file = path / "timing.jsonl"
        self.status_file = path / "status.json"
        self.data_values_file = path / "data_values.json"
        self.job_folder = path / JOB
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self._status = StatusFile(self.status_file)

    @classmethod
    def create(
        cls,
        runs_dir: Path,
        config_name: str,
        *,
        path: Path | None = None,
        agents: Sequence[str] = (),
        debug: str | None = None,
    ) -> Self:
        """Make the folder of a new run.

        Args:
            runs_dir: where runs are kept; made, with a .gitignore of its own, if it is missing.
            config_name: name of the configuration; the run lies in `runs_dir/config_name/<time>-<4 hex>`.
            path: the folder to use instead; it must be empty or absent.
            agents: see `Status.agents`.
            debug: what shortens the run, if anything: told by the status, and by a name that begins with `debug_`.

        Raises:
            RunFolderError: `path` is taken, or the folder cannot be made.
        """
        with _making(path):
            made = _new_folder(runs_dir, config_name, debug) if path is None else _take_folder(path, {JOB})
            folder = cls(made)
            folder._status.create(Status(config=config_name, agents=[*agents], debug=debug))
        return folder

    @classmethod
    def reserve(cls, runs_dir: Path, config_name: str, *, path: Path | None = None, debug: str | None = None) -> Self:
        """Make the folder of a run that a scheduler starts later: `create` then takes it.

        What the scheduler's job needs lies in `job_folder`, made here. Arguments and errors are those of `create`.
        """
        with _making(path):
            folder = cls(_new_folder(runs_dir, config_name, debug) if path is None else _take_folder(path))
            folder.job_folder.mkdir()
        return folder

    @classmethod
    def open(cls, path: Path) -> Self:
        """Find the run in the folder `path` again.

        Raises:
            RunFolderError: there is no run in it.
        """
        folder = cls(path)
        if folder.status_file.is_file():
            return folder
        if not path.is_dir():
            raise RunFolderError(f"{path} does not exist", remedy="`flambeau runs` lists the runs")
        raise RunFolderError(f"{path} is not a run folder: it has no status.json", remedy="`flambeau runs` lists them")

    @contextlib.contextmanager
    def lock(self, *, take_over: bool = False) -> Iterator[None]:
        """Own the folder, and give signs of life in `status.json` while the run is running.

        An error that leaves the block marks a running run as failed.

        Args:
            take_over: the process that owned the folder is known to be stopped or lost: own it even if its machine,
                which may be out of reach, has not given up the lock. It is so, too, if a process on another machine
                has given no sign of life for three minutes.

        Raises:
            RunFolderError: another process owns it: "in use by process N on HOST".
        """
        from flambeau.run_folder.lock import FolderLock

        lock = FolderLock(self.path / ".lock", take_over=take_over or self._is_lost_elsewhere())
        self._status.is_owner = lock.is_held
        try:
            self._status.start_heartbeat()
            yield
        except BaseException as error:
            self._status.fail(error)
            raise
        finally:
            self._status.stop_heartbeat()
            self._status.is_owner = None
            lock.release()

    def _is_lost_elsewhere(self) -> bool:
        status = read_status(self.status_file) if self.status_file.exists() else Status()
        return status.host not in ("", this_host()) and status.state == "running" and state_now(status) == "dead"

    @property
    def status(self) -> Status:
        """What the run is doing."""
        return self._status.read()

    def update_status(self, **changes: Any) -> None:
        """Change fields of the status by name, e.g. `step=100` or `state="finished"`.

        A change of `state` is on the disk when this returns, with process, machine and time filled in. Mere
        progress is written at most once a second and costs 3 µs in between.
        """
        self._status.update(changes)

    def write_start(
        self,
        config_yaml: str | None,
        command: Sequence[str],
        hardware: Mapping[str, Any],
        *,
        project: Path | None = None,
    ) -> None:
        """Write how the run was started: config.yaml, command.txt, environment.json, code.patch.

        Args:
            config_yaml: the resolved configuration, loadable as is; None for a run that has none.
            command: the command line; values of keys that name secrets are masked.
            hardware: devices, as plain data.
            project: the folder whose git state is recorded; default: the working directory.
        """
        if config_yaml is not None:
            write_atomically(self.config_file, config_yaml)
        self._write_command(command)
        self._write_provenance(hardware, project, session=1)

    def write_resume(
        self,
        command: Sequence[str],
        hardware: Mapping[str, Any],
        *,
        config_yaml: str | None = None,
        project: Path | None = None,
    ) -> None:
        """Add a resume to the record: its command, and what has changed since.

        `config.yaml`, `environment.json` and `code.patch` always say what is in force; where one changes, the
        one before stays as e.g. `config-1.yaml`, numbered by the last start that used it.
        """
        session = 1 + self._starts()
        if config_yaml is not None:
            _replace(self.config_file, config_yaml.encode(), session)
        self._write_command(command)
        self._write_provenance(hardware, project, session)

    def _starts(self) -> int:
        """How many times the run was started or resumed so far."""
        if not self.command_file.exists():
            return 0
        return sum(line.startswith("# ") for line in self.command_file.read_text().splitlines())

    def write_data_values(self, values: Mapping[str, Any]) -> None:
        """Write what the configuration has taken from the data module (`${data.num_classes}`), by dotted key."""
        if values or self.data_values_file.exists():
            write_atomically(self.data_values_file, json.dumps(dict(values), indent=2, ensure_ascii=False) + "\n")

    def read_data_values(self) -> dict[str, Any]:
        """What `write_data_values` has written; empty if nothing."""
        try:
            values = json.loads(self.data_values_file.read_bytes())
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def write_pretrained(self, sources: Sequence[Mapping[str, Any]]) -> None:
        """Write where the weights came from that the run has started with."""
        write_atomically(self.pretrained_file, json.dumps(list(sources), indent=2, ensure_ascii=False) + "\n")

    def _write_command(self, command: Sequence[str]) -> None:
        from flambeau.run_folder.environment import command_block

        so_far = self.command_file.read_text() if self.command_file.exists() else ""
        block = command_block(command, Path.cwd(), now())
        write_atomically(self.command_file, f"{so_far}\n{block}" if so_far else block)

    def _write_provenance(self, hardware: Mapping[str, Any], project: Path | None, session: int) -> None:
        from flambeau.run_folder.code_state import read_code_state
        from flambeau.run_folder.environment import describe_environment

        code = read_code_state(project or Path.cwd(), exclude=[self.path])
        description = describe_environment(hardware, code.summary() if code else None)
        text = json.dumps(description, indent=2, ensure_ascii=False, default=str) + "\n"
        _replace(self.environment_file, text.encode(), session)
        _replace(self.patch_file, code.patch if code else b"", session)


def _replace(path: Path, content: bytes, session: int) -> None:
    """Write `content`, keeping a different one of before under the number of the session before."""
    before = path.read_bytes() if path.exists() else b""
    if before == content:
        return
    if before:
        write_atomically(path.with_stem(f"{path.stem}-{session - 1}"), before)
    if content:
        write_atomically(path, content)
    else:
        path.unlink(missing_ok=True)


def new_path(runs_dir: Path, config_name: str, debug: str | None = None) -> Path:
    """Where a run that begins now would lie: `runs_dir/config_name/<time>-<4 hex>`, of a run that is shortened
    `debug_<time>-<4 hex>`. Nothing is made."""
    import secrets
    from datetime import datetime

    # The system's generator: a run's name never moves the generators that training uses.
    mark = "debug_" if debug else ""
    return runs_dir / config_name / f"{mark}{datetime.now():%Y-%m-%d_%H-%M-%S}-{secrets.token_hex(2)}"


def _new_folder(runs_dir: Path, config_name: str, debug: str | None) -> Path:
    if not runs_dir.exists():
        runs_dir.mkdir(parents=True)
        (runs_dir / ".gitignore").write_text("*\n")  # runs are results: large, and no part of the project's history
    (runs_dir / config_name).mkdir(parents=True, exist_ok=True)
    while True:
        path = new_path(runs_dir, config_name, debug)
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path


@contextlib.contextmanager
def _making(path: Path | None) -> Iterator[None]:
    """Say what is wrong if a folder, or the one that was asked for, cannot be made."""
    try:
        yield
    except FileExistsError as error:
        raise _taken(path or Path(error.filename)) from error
    except OSError as error:
        raise RunFolderError(
            f"the run folder cannot be made: {error.strerror}: {error.filename}",
            remedy="choose another place with --run-dir",
        ) from error


def _take_folder(path: Path, besides: Collection[str] = ()) -> Path:
    if path.exists() and (not path.is_dir() or any(entry.name not in besides for entry in path.iterdir())):
        raise _taken(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def _taken(path: Path) -> RunFolderError:
    status_file = path / "status.json"
    if not status_file.is_file():
        what = "is not empty" if path.is_dir() else "is not a folder"
        return RunFolderError(f"{path} {what}", remedy="give --run-dir a folder that is new or empty")
    state = read_status(status_file).state
    return RunFolderError(
        f"{path} holds a run already ({state})",
        remedy=f"`flambeau resume {path}` goes on with it; or give --run-dir another folder",
    )
