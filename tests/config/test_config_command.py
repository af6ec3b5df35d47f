"""`flambeau config`: the resolved tree with the origin of each value."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flambeau.config import Project
from flambeau.errors import EXIT_DONE, EXIT_USAGE

Write = Callable[[str, str], Path]
Run = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(project: Project) -> Run:
    """Runs the command in the project, in a process of its own."""

    def run_command(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flambeau", "config", *arguments],
            cwd=project.root,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environ},
            capture_output=True,
            text=True,
        )

    return run_command


def lines_of(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """`  lr: 0.1` -> origin."""
    assert done.returncode == EXIT_DONE, done.stderr
    return {text.rstrip(): origin for text, _, origin in (line.partition("  # ") for line in done.stdout.splitlines())}


def test_each_value_is_shown_with_its_origin(write: Write, run: Run) -> None:
    """File and line, environment, command line, default: of the engine's settings and of the parts' arguments."""
    write("mine", "base: base\nmodel:\n  width: 2\nmetrics: {top: {name: hits}}\ntrainer: {ema: {decay: 0.5}}\n")
    lines = lines_of(run("mine", "optimizer.lr=3e-4", FLAMBEAU__SEED="7"))
    assert lines["seed: 7"] == "FLAMBEAU__SEED, was 0"
    assert lines["runs_dir: runs"] == "default"
    assert lines["  name: wide"] == "configs/base.yaml:3"
    assert lines["  width: 2"] == "configs/mine.yaml:3"
    assert lines["  num_classes: 10"] == "default"
    assert lines["  lr: 0.0003"].startswith("command line, ")
    assert lines["  momentum: 0.0"] == "default"
    assert lines["  workers: 0"] == "default"
    assert lines["    k: 1"] == "default"
    assert lines["    update_every: 1"] == "default"
    assert lines["checkpoint:"] == "default"
    assert lines["  keep_last: 2"] == "default"
    assert not any(line.startswith("  params") for line in lines)


def test_overrides_of_the_command_line_are_checked_too(run: Run) -> None:
    """All problems on standard error, nothing on standard output, exit status 2."""
    done = run("base", "sede=1", "model.widht=2", "trainer.epochs=x")
    assert done.returncode == EXIT_USAGE
    assert done.stdout == ""
    assert "3 problems" in done.stderr
    assert "did you mean 'seed'?" in done.stderr
    assert "did you mean 'width'?" in done.stderr
    assert "command line: trainer.epochs" in done.stderr
    assert "Traceback" not in done.stderr


def test_secrets_are_not_shown_and_other_variables_are(write: Write, run: Run) -> None:
    """Neither as a tree nor as JSON."""
    write(
        "mine",
        "base: base\ndata: {folder: '${env:FOLDER}', token: '${env:ANY}'}\nmodel: {note: '${data.token}'}\n"
        "tracking: [notebook]\n",
    )
    environ = {"FOLDER": "/scratch", "ANY": "hunter2", "FLAMBEAU__TRACKING__NOTEBOOK__API_KEY": "hunter3"}
    done = run("mine", **environ)
    lines = lines_of(done)
    assert lines["  folder: ${env:FOLDER}"] == "configs/mine.yaml:2, now /scratch"
    assert lines["  token: ${env:ANY}"] == "configs/mine.yaml:2"
    assert lines["  note: ${data.token}"] == "configs/mine.yaml:3"
    assert lines["    api_key: '***'"] == "FLAMBEAU__TRACKING__NOTEBOOK__API_KEY, added"
    assert "hunter" not in done.stdout + run("mine", "--json", **environ).stdout


def test_json_holds_values_defaults_and_origins(write: Write, run: Run) -> None:
    """For programs; also numbers that JSON does not have."""
    write("mine", "base: base\nmodel: {width: .inf}\ntracking: {notebook: {}}\n")
    done = run("mine", "--json")
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    assert found["config"] == "mine"
    assert [Path(source).name for source in found["sources"]] == ["base.yaml", "mine.yaml"]
    assert found["values"]["model"] == {"name": "wide", "width": ".inf"}
    assert found["defaults"]["trainer"]["precision"] == "fp32"
    assert found["defaults"]["tracking"]["notebook"] == {"api_key": None, "every": 1}
    assert found["origins"]["model.width"] == {"kind": "file", "place": "configs/mine.yaml:2"}


def test_the_schema_is_printed(run: Run) -> None:
    """JSON schema draft-07 with the project's own parts; no configuration needs to be named."""
    schema = json.loads(run("--schema").stdout)
    assert schema["$schema"].startswith("http://json-schema.org/draft-07")
    assert "wide" in json.dumps(schema["properties"]["model"])


def test_without_a_name_the_configurations_are_listed(run: Run) -> None:
    """The project's own and those that are shipped."""
    done = run()
    assert done.returncode == EXIT_USAGE
    assert "base" in done.stderr
    assert "lenet" in done.stderr


def test_neither_torch_nor_numpy_nor_rich_is_imported(write: Write, project: Project) -> None:
    """Output that is not for a terminal needs nothing of the sort."""
    write("mine", "base: base\noptimizer: {name: torch.optim.SGD}\n")
    code = (
        "import sys; from flambeau.cli import main; status = main(['config', 'mine']);"
        "print([name for name in ('torch', 'numpy', 'rich') if name in sys.modules], status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project.root, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[] 0"


def test_on_a_terminal_defaults_are_dimmed(write: Write, project: Project) -> None:
    """A real pseudo-terminal; what is set stands out."""
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(project.root)
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "40"}
        os.execve(sys.executable, [sys.executable, "-m", "flambeau", "config", "base"], environ)
    chunks = []
    try:
        while chunk := os.read(terminal, 65536):
            chunks.append(chunk)
    except OSError:
        pass  # the end of a pseudo-terminal on Linux
    os.close(terminal)
    os.waitpid(pid, 0)
    text = b"".join(chunks).decode()
    dimmed = [line for line in text.splitlines() if line.startswith("\x1b[2m")]
    assert any("runs_dir: runs" in line for line in dimmed)
    assert not any("seed: 0" in line for line in dimmed)
    assert "configs/base.yaml:1" in text
