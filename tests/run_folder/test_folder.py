"""The run folder: made once, owned by one process, self-explaining."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flambeau.errors import EXIT_USAGE, RunFolderError
from flambeau.run_folder import RunFolder
from flambeau.run_folder.environment import installed_packages


def test_a_new_run_lies_under_its_configuration_with_time_and_a_short_id(tmp_path: Path) -> None:
    """`runs/<config name>/<time>-<4 hex digits>`, never one name twice, and runs stay out of git."""
    runs_dir = tmp_path / "runs"
    made = [RunFolder.create(runs_dir, "lenet").path for _ in range(5)]
    assert len(set(made)) == 5
    for path in made:
        assert path.parent == runs_dir / "lenet"
        assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-[0-9a-f]{4}", path.name)
    assert (runs_dir / ".gitignore").read_text() == "*\n"


def test_naming_a_run_never_moves_the_global_generator(tmp_path: Path) -> None:
    """Making a folder leaves `random` where it was."""
    before = random.getstate()
    RunFolder.create(tmp_path, "lenet")
    assert random.getstate() == before


def test_a_given_folder_is_taken_if_absent_or_empty(tmp_path: Path) -> None:
    """`--run-dir` names the folder itself."""
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "a" / "new", tmp_path / "empty"):
        folder = RunFolder.create(tmp_path / "runs", "lenet", path=path)
        assert folder.path == path
        assert RunFolder.open(path).status.config == "lenet"


def test_a_used_folder_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """A second run never mixes with the first; the message says to resume or to choose another folder."""
    RunFolder.create(tmp_path, "lenet", path=tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"holds a run already \(running\)") as caught:
        RunFolder.create(tmp_path, "lenet", path=tmp_path / "run")
    assert f"flambeau resume {tmp_path / 'run'}" in str(caught.value)
    assert caught.value.exit_status == EXIT_USAGE


def test_of_many_runs_started_on_one_folder_one_gets_it(tmp_path: Path) -> None:
    """Also at the same instant."""
    for attempt in range(10):
        begin = threading.Barrier(8)
        won: list[RunFolder] = []

        def start(path: Path, begin: threading.Barrier = begin, won: list[RunFolder] = won) -> None:
            begin.wait()
            with contextlib.suppress(RunFolderError):
                won.append(RunFolder.create(tmp_path, "lenet", path=path))

        threads = [threading.Thread(target=start, args=[tmp_path / str(attempt)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_place_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    """What is in the way is never overwritten."""
    place = tmp_path / "thesis"
    precious = place / "chapter.tex" if kind == "folder" else place
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("precious")
    with pytest.raises(RunFolderError, match="not empty" if kind == "folder" else "not a folder"):
        RunFolder.create(tmp_path, "lenet", path=place)
    assert precious.read_text() == "precious"
    assert place.is_file() or list(place.iterdir()) == [precious]


def test_a_place_below_a_file_is_refused_by_name(tmp_path: Path) -> None:
    """A folder that the system cannot make is a wrong --run-dir, with the system's reason."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"Not a directory.*file/run"):
        RunFolder.create(tmp_path, "lenet", path=tmp_path / "file" / "run")


def test_opening_says_what_is_wrong_with_a_path(tmp_path: Path) -> None:
    """An absent folder and a folder without a run are told apart."""
    with pytest.raises(RunFolderError, match="does not exist"):
        RunFolder.open(tmp_path / "absent")
    with pytest.raises(RunFolderError, match="is not a run folder"):
        RunFolder.open(tmp_path)


def test_the_start_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """config.yaml as given, the command as a shell takes it, packages, machine; no environment variable."""
    monkeypatch.setenv("MY_API_KEY", "hunter2-from-the-environment")
    monkeypatch.chdir(tmp_path)
    folder = RunFolder.create(tmp_path / "runs", "lenet")
    command = [
        "flambeau",
        "train",
        "lenet",
        "data.path=my data",
        "tracking.w.api_key=hunter2",
        "--token",
        "x1y2",
    ]
    folder.write_start("seed: 0\n", command, {"gpus": ["none"]})
    assert folder.config_file.read_text() == "seed: 0\n"
    date, line = folder.command_file.read_text().splitlines()
    assert date.startswith("# 20") and str(tmp_path) in date
    assert line == "flambeau train lenet 'data.path=my data' 'tracking.w.api_key=***' --token '***'"
    environment = json.loads(folder.environment_file.read_text())
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert environment["packages"]["pyyaml"] and environment["hardware"] == {"gpus": ["none"]}
    assert environment["git"] is None and not folder.patch_file.exists()
    everything = b"".join(path.read_bytes() for path in folder.path.iterdir())
    assert b"hunter2" not in everything and b"x1y2" not in everything


def test_packages_are_those_that_importlib_finds() -> None:
    """The fast reading of folder names agrees with the standard library's."""
    from importlib.metadata import distributions

    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    expected: dict[str, str] = {}
    for item in distributions():
        if item.metadata["Name"]:
            expected.setdefault(normal(item.metadata["Name"]), item.version)
    found = installed_packages(sys.path)
    assert {name: found.get(name) for name in expected} == expected


def test_a_resume_adds_its_command_and_keeps_what_changed(tmp_path: Path) -> None:
    """config.yaml is what is in force; the one before stays under the number of its last start."""
    folder = RunFolder.create(tmp_path, "lenet")
    folder.write_start("epochs: 1\n", ["flambeau", "train", "lenet"], {"gpu": "a"}, project=tmp_path)
    folder.write_resume(["flambeau", "resume", "x"], {"gpu": "a"}, project=tmp_path)
    assert sorted(path.name for path in folder.path.glob("*-[0-9].*")) == []
    folder.write_resume(
        ["flambeau", "resume", "x", "epochs=2"], {"gpu": "b"}, config_yaml="epochs: 2\n", project=tmp_path
    )
    assert folder.config_file.read_text() == "epochs: 2\n"
    assert (folder.path / "config-2.yaml").read_text() == "epochs: 1\n"
    assert json.loads((folder.path / "environment-2.json").read_text())["hardware"] == {"gpu": "a"}
    lines = [line for line in folder.command_file.read_text().splitlines() if line and line[0] != "#"]
    assert lines == ["flambeau train lenet", "flambeau resume x", "flambeau resume x epochs=2"]


HOLD = """
import sys, os
from pathlib import Path
from flambeau.run_folder import RunFolder
with RunFolder.open(Path(sys.argv[1])).lock():
    if len(sys.argv) > 2 and os.fork() == 0:
        sys.stdin.read()  # a data worker that outlives its trainer
        os._exit(0)
    print("held", flush=True)
    sys.stdin.readline()
"""


def hold(folder: RunFolder, *options: str) -> subprocess.Popen[str]:
    """Another process that owns the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_folder_in_use_is_refused_with_the_process_and_its_machine(tmp_path: Path) -> None:
    """Two processes never write one run; when the first ends, the second may."""
    folder = RunFolder.create(tmp_path, "lenet")
    holder = hold(folder)
    try:
        message = f"in use by process {holder.pid} on {os.uname().nodename}"
        with pytest.raises(RunFolderError, match=message), folder.lock():
            pass
    finally:
        holder.communicate("\n")
    with folder.lock():
        pass


def test_a_killed_process_gives_the_folder_up_even_if_its_workers_live(tmp_path: Path) -> None:
    """Resuming works at once after SIGKILL, also while forked data workers are still ending."""
    folder = RunFolder.create(tmp_path, "lenet")
    holder = hold(folder, "with a worker")
    holder.kill()
    holder.wait()
    with folder.lock():
        pass
    assert holder.stdin is not None and holder.stdout is not None
    holder.stdin.close()
    holder.stdout.close()


def test_two_trainers_in_one_process_do_not_share_a_folder(tmp_path: Path) -> None:
    """In a notebook too."""
    folder = RunFolder.create(tmp_path, "lenet")
    again = RunFolder.open(folder.path)
    with folder.lock(), pytest.raises(RunFolderError, match=f"process {os.getpid()} "), again.lock():
        pass


def test_the_room_imports_neither_torch_nor_numpy_nor_rich() -> None:
    """Commands that only read run folders start at once."""
    code = (
        "import sys, flambeau.run_folder, flambeau.run_folder.lock, flambeau.run_folder.environment, "
        "flambeau.run_folder.code_state; print({'torch', 'numpy', 'rich', 'yaml'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
