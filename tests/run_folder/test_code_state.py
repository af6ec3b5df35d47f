"""The code of a run: git commit and a patch that brings back what was not committed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flambeau.run_folder import RunFolder, code_state
from flambeau.run_folder.code_state import CodeState, new_file_patch, read_code_state

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture(scope="module", autouse=True)
def _no_git_configuration_of_the_machine(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings_file = tmp_path_factory.mktemp("git") / "config"
    settings_file.write_text("[user]\nname = Ada\nemail = ada@example.org\n[init]\ndefaultBranch = main\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", str(settings_file))
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
            patch.delenv(name, raising=False)
        yield


def git(folder: Path, *arguments: str, given: bytes = b"") -> bytes:
    return subprocess.run(["git", *arguments], cwd=folder, input=given, check=True, stdout=subprocess.PIPE).stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with one commit."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q")
    write(folder / "train.py", b"print('one')\nprint('two')\n")
    write(folder / "pkg" / "model.py", b"x = 1\n")
    write(folder / "logo.bin", bytes(range(256)) * 4)
    write(folder / ".env", b"TOKEN=committed-by-mistake\n")
    write(folder / ".gitignore", b"ignored/\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "start")
    return folder


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def state_of(folder: Path) -> CodeState:
    state = read_code_state(folder)
    assert state is not None and state.problem is None
    return state


def files(folder: Path) -> dict[str, object]:
    """All files of a work tree: content, whether executable, where a link points."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.split("/")[0] == ".git" or (path.is_dir() and not path.is_symlink()):
            continue
        found[name] = path.readlink() if path.is_symlink() else (path.read_bytes(), os.access(path, os.X_OK))
    return found


def restored(folder: Path, state: CodeState, where: Path) -> dict[str, object]:
    """The files that the recorded commit and patch give."""
    if state.commit is None:
        git(folder, "init", "-q", str(where))
    else:
        git(folder, "clone", "-q", str(folder), str(where))
        git(where, "checkout", "-q", state.commit)
    git(where, "apply", "-", given=state.patch)
    return files(where)


def test_a_clean_project_is_its_commit_alone(project: Path) -> None:
    """Commit and branch; nothing to patch; ignored files do not count."""
    write(project / "ignored" / "big.txt", b"x")
    state = state_of(project / "pkg")
    assert state.commit == git(project, "rev-parse", "HEAD").decode().strip()
    assert (state.branch, state.dirty, state.patch, state.left_out) == ("main", False, b"", [])


def test_commit_and_patch_bring_every_change_back(project: Path, tmp_path: Path) -> None:
    """Edits staged or not, deletions, renames, binary files, modes, new files of any name, links."""
    write(project / "train.py", b"print('one')\r\nprint('three')")
    git(project, "mv", "pkg/model.py", "pkg/network.py")
    write(project / "pkg" / "network.py", b"x = 2\n")
    write(project / "logo.bin", b"\0\1\2" * 50)
    write(project / "staged.py", b"s = 1\n")
    git(project, "add", "staged.py")
    write(project / "new" / "empty.py", b"")
    write(project / "new" / "no newline.txt", b"last line")
    write(project / "new" / 'quote"back\\slash\ttab.py', b"odd = 1\n")
    write(project / "new" / "größe.py", "ä = 'ü'\n".encode())
    write(project / "new" / "latin.txt", b"caf\xe9\r\n\r\nx\n")
    write(project / "run.sh", b"#!/bin/sh\n").chmod(0o755)
    (project / "link").symlink_to("train.py")
    state = state_of(project)
    assert state.dirty and state.left_out == []
    assert restored(project, state, tmp_path / "again") == files(project)


def test_settings_of_the_user_do_not_change_the_patch(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefixes, colours, external diff programs, renames and relative paths are git's own matter."""
    write(project / "train.py", b"print('one')\nprint('three')\n")
    expected = state_of(project).patch
    for setting in (
        ["diff.noprefix", "true"],
        ["diff.mnemonicPrefix", "true"],
        ["color.ui", "always"],
        ["diff.external", "false"],
        ["diff.relative", "true"],
        ["diff.context", "0"],
        ["status.showUntrackedFiles", "no"],
        ["core.quotePath", "false"],
    ):
        git(project, "config", *setting)
    assert state_of(project / "pkg").patch == expected
    write(project / "new.py", b"n = 1\n")
    assert b"+n = 1" in state_of(project).patch


def test_before_the_first_commit_the_patch_is_the_whole_project(tmp_path: Path) -> None:
    """A project that was just begun can be brought back too."""
    folder = tmp_path / "young"
    folder.mkdir()
    git(folder, "init", "-q")
    write(folder / "a.py", b"a = 1\n")
    write(folder / "b.py", b"b = 1\n")
    git(folder, "add", "a.py")
    state = state_of(folder)
    assert state.commit is None and state.branch == "main"
    assert restored(folder, state, tmp_path / "again") == files(folder)


@pytest.mark.parametrize("name", [".env", ".env.local", "prod.env", "keys/id_rsa", "server.pem", "secrets.yaml"])
def test_files_that_hold_secrets_are_never_written(project: Path, name: str) -> None:
    """Tracked or not; the record says that they are missing."""
    write(project / ".env", b"TOKEN=hunter2\n")
    write(project / name, b"TOKEN=hunter2\n")
    write(project / "train.py", b"pass\n")
    state = state_of(project)
    assert b"hunter2" not in state.patch and b"committed-by-mistake" not in state.patch
    assert b"+pass" in state.patch
    assert f"{name} (may hold secrets)" in state.left_out


def test_source_files_about_secrets_are_code(project: Path) -> None:
    """A module is not left out for its name."""
    write(project / "secrets.py", b"s = 1\n")
    state = state_of(project)
    assert b"+s = 1" in state.patch and state.left_out == []


def test_large_and_binary_files_are_named_instead_of_copied(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left still applies."""
    monkeypatch.setattr(code_state, "MAX_NEW_FILES", 2000)
    monkeypatch.setattr(code_state, "MAX_NEW_FILE", 1500)
    monkeypatch.setattr(code_state, "MAX_BINARY", 1500)
    monkeypatch.setattr(code_state, "MAX_CHANGED_LINES", 100)
    write(project / "logo.bin", b"\0" * 2000)
    write(project / "train.py", b"pass\n" * 200)
    write(project / "pkg" / "model.py", b"x = 3\n")
    write(project / "a.txt", b"x" * 1400)
    write(project / "b.txt", b"x" * 1400)
    write(project / "c.txt", b"x" * 1600)
    write(project / "d.npy", b"\0")
    state = state_of(project)
    assert sorted(state.left_out) == [
        "b.txt (too much in all)",
        "c.txt (large)",
        "d.npy (not text)",
        "logo.bin (large binary file)",
        "train.py (too many changed lines)",
    ]
    again = restored(project, state, tmp_path / "again")
    assert again["pkg/model.py"] == (b"x = 3\n", False) and again["a.txt"] == (b"x" * 1400, False)


def test_run_folders_are_no_part_of_the_code(project: Path) -> None:
    """Neither the run's own folder, wherever it lies, nor older ones."""
    older = RunFolder.create(project / "runs", "lenet", path=project / "experiment-1")
    older.write_start("", ["flambeau"], {}, project=project)
    write(older.path / "notes" / "log.txt", b"x\n")
    folder = RunFolder.create(project / "runs", "lenet", path=project / "experiment-2")
    folder.write_start("", ["flambeau"], {}, project=project)
    assert not folder.patch_file.exists()
    assert not older.patch_file.exists()
    RunFolder.create(project / "runs", "lenet")
    assert not state_of(project).patch.count(b"runs/")


def test_a_repository_within_is_named(project: Path) -> None:
    """Its files are not ours to copy."""
    git(project, "init", "-q", "vendored")
    write(project / "vendored" / "x.py", b"x\n")
    git(project / "vendored", "add", "x.py")
    git(project / "vendored", "commit", "-qm", "x")
    state = state_of(project)
    assert state.left_out == ["vendored/ (a repository of its own)"] and state.patch == b""


def test_outside_of_git_nothing_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run needs no repository."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert read_code_state(tmp_path) is None


def test_without_git_the_record_says_so(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training goes on; nobody takes the code for clean."""
    monkeypatch.setenv("PATH", str(tmp_path))
    state = read_code_state(project)
    assert state is not None and state.summary() == {"problem": "git is not installed"}


def test_a_damaged_repository_is_a_problem_in_the_record_not_of_the_run(project: Path) -> None:
    """git's own words are kept."""
    (project / ".git" / "index").write_bytes(b"rubbish" * 10)
    state = read_code_state(project)
    assert state is not None and "index" in state.summary()["problem"]


def test_nothing_in_the_repository_is_written(project: Path, tmp_path: Path) -> None:
    """Not even the index that git refreshes in passing; a file that was only touched is no change."""
    write(project / "train.py", b"pass\n")
    write(project / "new.py", b"pass\n")
    os.utime(project / "logo.bin", (0, 0))
    before = {path: path.stat().st_mtime_ns for path in (project / ".git").rglob("*")}
    state = state_of(project)
    assert b"logo.bin" not in state.patch
    assert restored(project, state, tmp_path / "again") == files(project)
    assert {path: path.stat().st_mtime_ns for path in (project / ".git").rglob("*")} == before


names = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="/\0"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..", ".git") and len(name.encode()) < 200
)


@settings(max_examples=25, deadline=None)
@given(entries=st.dictionaries(names, st.binary(max_size=60).filter(lambda c: b"\0" not in c), min_size=1))
def test_git_takes_a_patch_of_any_new_text_file(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[str, bytes]
) -> None:
    """Any name, any bytes but NUL, with or without a newline at the end."""
    entries = {f"n{name}": content for name, content in entries.items()}
    folder = tmp_path_factory.mktemp("apply")
    patch = b"".join(new_file_patch(os.fsencode(n), content, "100644") for n, content in entries.items())
    git(folder, "init", "-q")
    git(folder, "apply", "-", given=patch)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == entries
