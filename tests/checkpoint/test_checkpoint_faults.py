"""Saves on disks that fail, in processes that are killed, on machines that lose power: real faults, as root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_states import assert_same, save, store_in, weights

import flambeau
from flambeau.errors import CheckpointError

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("strace") is None,
        reason="needs root and strace",
    ),
]


def under_fault(fault: str, folder: Path) -> dict[str, Any]:
    """Run `checkpoint_faults.py`, which checks the folder after each fault, and give what it has seen."""
    program = Path(__file__).with_name("checkpoint_faults.py")
    done = subprocess.run(
        [sys.executable, program, fault, folder],
        env={**os.environ, "PYTHONPATH": str(Path(flambeau.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.slow
def test_sigkill_at_every_system_call_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """Of a save that replaces and removes older ones: the state before or the state after, and the next save works."""
    seen = under_fault("kill", tmp_path)
    for case in ("new", "again"):
        assert {"write", "fsync", "rename", "symlink", "unlinkat", "rmdir"} <= set(seen[case]["calls"])
        assert min(seen[case]["found"][state] for state in ("old", "new")) > 20


def test_an_error_of_any_system_call_is_reported_and_harms_nothing(tmp_path: Path) -> None:
    """EIO from each write, flush, rename, link and removal: the message names it and the newest whole checkpoint."""
    seen = under_fault("error", tmp_path)
    assert min(seen[case]["fsync"] for case in ("new", "again")) >= 6


def test_a_write_that_is_lost_in_silence_is_noticed_before_anything_is_replaced(tmp_path: Path) -> None:
    """The kernel says that all bytes were written, and none were: each file of a checkpoint in turn."""
    messages = under_fault("lost", tmp_path)["messages"]
    for name in ("model.safetensors", "state.safetensors", "state.json", "manifest.json"):
        assert sum(f"the disk lost a write ({name}:" in message for message in messages) == 1
    assert all("the newest whole checkpoint is" in message for message in messages)


def test_everything_is_flushed_before_something_else_relies_on_it(tmp_path: Path) -> None:
    """One ext4 commit flushes more than it was asked to, and other file systems do not: so the order is checked."""
    seen = under_fault("order", tmp_path)
    for case, name in (("new", "step-00000040"), ("again", "step-00000030")):
        calls = [tuple(call) for call in seen[case]]
        published = calls.index(("rename", f".tmp-{name}", name))
        files = ["model.safetensors", "state.safetensors", "state.json", "manifest.json"]
        flushed = [path for call, path, _ in calls[:published] if call == "fsync"]
        assert flushed == [*(f".tmp-{name}/{file}" for file in files), f".tmp-{name}"]
        assert calls[published + 1] == ("fsync", "", "")  # the folder, before links and removals
        removed = [index for index, call in enumerate(calls) if call[0] in ("unlinkat", "rmdir")]
        assert removed
        for index in removed:
            aside = calls[index][1]
            renamed = next(at for at, call in enumerate(calls) if call[0] == "rename" and call[2] == aside)
            assert ("fsync", "", "") in calls[renamed:index]


@pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="needs loop devices")
def test_a_power_cut_at_any_point_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """On ext4, all that was not flushed is lost; a save that has returned from `wait` is never lost."""
    seen = under_fault("power", tmp_path)
    assert min(seen["found"][state] for state in ("old", "new")) > 10


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_named_and_the_last_whole_checkpoint_survives(small_disk: Path) -> None:
    """What the failed save has written is taken away again, so that the next save finds the room it needs."""
    store = store_in(small_disk)
    save(store, 1, weights(1))
    store.save(2, {"model": {"w": np.ones(600_000)}})
    with pytest.raises(CheckpointError) as raised:
        store.wait()
    message = str(raised.value)
    assert "step 2 was not saved: the disk is full (ENOSPC: " in message
    assert message.splitlines()[0].endswith("the newest whole checkpoint is " + str(store.at(1).path))
    assert "model.safetensors" in message
    assert "free some space" in message
    assert isinstance(raised.value.__cause__, OSError)
    save(store, 3, weights(3))
    newest = store_in(small_disk).newest()
    assert newest is not None
    assert_same(newest.load(), weights(3))


def test_a_disk_that_became_read_only_is_named_and_read(small_disk: Path) -> None:
    """Saving says so; finding and loading need no write access."""
    store = store_in(small_disk)
    save(store, 1, weights(1))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    store.save(2, weights(2))
    with pytest.raises(
        CheckpointError, match=r"read-only \(EROFS(.|\n)*the newest whole checkpoint is .*step-00000001"
    ):
        store.wait()
    newest = store_in(small_disk).newest()
    assert newest is not None
    assert_same(newest.load(), weights(1))
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    save(store, 3, weights(3))
    assert store.steps() == [1, 3]


def test_a_file_size_limit_is_named(tmp_path: Path) -> None:
    """`ulimit -f`, as some clusters set it. Python ignores its signal, so the write fails with EFBIG."""
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from checkpoint_states import save, store_in, weights
store = store_in(Path({str(tmp_path)!r}))
save(store, 1, weights(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
store.save(2, weights(2, size=100_000))
try:
    store.wait()
except Exception as error:
    print(error)
"""
    root = Path(flambeau.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    assert "the file is larger than the file system or `ulimit -f` allows (EFBIG" in done.stdout
    assert store_in(tmp_path).steps() == [1]
