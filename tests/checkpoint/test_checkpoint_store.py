"""Saving, finding and keeping the checkpoints of a run."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from checkpoint_states import assert_same, save, store_in, weights
from hypothesis import given
from hypothesis import strategies as st

import flambeau.checkpoint
from flambeau.checkpoint.retention import by_score, surplus
from flambeau.config.sections import CheckpointSettings
from flambeau.errors import CheckpointError

scores_by_step = st.dictionaries(
    st.integers(0, 50), st.one_of(st.none(), st.floats(allow_nan=True)), min_size=1, max_size=12
)
modes = st.sampled_from(["min", "max"])


def names(folder: Path) -> list[str]:
    """All names in `folder/checkpoints`, hidden ones too."""
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_a_new_folder_has_no_checkpoints(tmp_path: Path) -> None:
    """Looking for checkpoints makes nothing and fails at nothing."""
    store = store_in(tmp_path)
    assert store.newest() is None
    assert store.best() is None
    assert store.steps() == []
    assert not store.folder.exists()
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7\n  steps that are there: none"):
        store.at(7)


def test_a_checkpoint_is_a_directory_of_plain_files(tmp_path: Path) -> None:
    """Weights, their average, everything else and a manifest with size and SHA-256 of each."""
    store = store_in(tmp_path)
    save(store, 1200, {**weights(0), "ema": {"weight": np.ones(2)}}, score=0.5)
    assert names(tmp_path) == ["best", "last", "step-00001200"]
    path = tmp_path / "checkpoints" / "step-00001200"
    files = {"ema.safetensors", "model.safetensors", "state.json", "state.safetensors"}
    assert {file.name for file in path.iterdir()} == {*files, "manifest.json"}
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["format"], manifest["step"], manifest["score"]) == (1, 1200, 0.5)
    assert set(manifest["files"]) == files
    assert all(entry["size"] == (path / name).stat().st_size for name, entry in manifest["files"].items())


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    """Two runs that agree have equal checkpoints, manifest and all: no clock and no host is in them."""
    for run in ("a", "b"):
        save(store_in(tmp_path / run), 5, weights(3), score=0.25)
    first, second = (tmp_path / run / "checkpoints" / "step-00000005" for run in ("a", "b"))
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


def test_a_run_without_tensors_does_without_torch(tmp_path: Path) -> None:
    """torch is imported when a tensor is met, not before."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from checkpoint_states import assert_same, save, store_in, weights
store = store_in(Path({str(tmp_path)!r}))
save(store, 1, weights(0))
assert_same(store.newest().load(), weights(0))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(flambeau.__file__).parents[1])


def test_a_save_leaves_the_training_thread_before_the_disk_has_it(tmp_path: Path) -> None:
    """While the files are flushed, `save` has long returned; the next save waits for the one under way."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # to be flushed it must be opened, and that waits for someone at the other end
    store = store_in(tmp_path)
    store.save(1, weights(1), flush=[pipe])
    try:
        assert store.busy()
        assert not (tmp_path / "checkpoints" / "step-00000001").exists()
    finally:
        other_end = os.open(pipe, os.O_RDWR)
    with pytest.raises(CheckpointError, match="step 1 was not saved: Invalid argument"):
        store.wait()  # a pipe cannot be flushed
    os.close(other_end)
    assert not store.busy()


def test_files_to_flush_may_be_absent(tmp_path: Path) -> None:
    """A run that has not logged yet has no metrics file."""
    store = store_in(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    save(store, 1, flush=[tmp_path / "metrics.jsonl", tmp_path / "absent"])
    assert store.steps() == [1]


def test_newest_best_and_steps_agree_between_processes(tmp_path: Path) -> None:
    """A new store of the same folder finds what the first one left."""
    store = store_in(tmp_path, keep_last=3)
    for step, score in [(10, 0.1), (20, 0.9), (30, 0.5)]:
        save(store, step, weights(step), score=score)
    for reader in (store, store_in(tmp_path)):
        assert reader.steps() == [10, 20, 30]
        newest, best = reader.newest(), reader.best()
        assert newest is not None
        assert best is not None
        assert (newest.step, best.step, best.score) == (30, 20, 0.9)
        assert_same(reader.at(10).load(), weights(10))


@pytest.mark.parametrize(("mode", "best"), [("max", 2), ("min", 4)])
def test_retention_keeps_the_best_the_newest_and_the_milestones(tmp_path: Path, mode: str, best: int) -> None:
    """Higher is better or lower is better; the links follow."""
    store = store_in(tmp_path, mode=mode, keep_last=2, keep_best=1, keep_every_steps=5)
    scores = {1: 0.3, 2: 0.9, 3: 0.4, 4: 0.1, 5: 0.6, 6: None, 7: 0.5, 8: 0.7}
    for step, score in scores.items():
        save(store, step, score=score)
        newest = store.newest()
        assert newest is not None
        assert newest.step == step
    assert store.steps() == sorted({best, 5, 7, 8})
    assert names(tmp_path) == ["best", "last", *(f"step-{step:08d}" for step in store.steps())]
    assert (tmp_path / "checkpoints" / "last").readlink() == Path("step-00000008")
    assert (tmp_path / "checkpoints" / "best").readlink() == Path(f"step-{best:08d}")


@given(
    scores=scores_by_step,
    mode=modes,
    last=st.integers(1, 3),
    best=st.integers(0, 3),
    every=st.none() | st.integers(1, 7),
)
def test_retention_never_lets_go_of_the_best_the_newest_or_a_protected_one(
    scores: dict[int, float | None], mode: str, last: int, best: int, every: int | None
) -> None:
    """Whatever the scores: missing, equal, infinite or not a number."""
    rules = CheckpointSettings(keep_last=last, keep_best=best, keep_every_steps=every)
    protected = min(scores)
    going = surplus(scores, rules, mode, protect=[protected])  # type: ignore[arg-type]
    kept = set(scores) - set(going)
    real = [score for score in scores.values() if score is not None and score == score]
    assert max(scores) in kept
    assert protected in kept
    if best and real:
        extreme = min(real) if mode == "min" else max(real)
        assert any(scores[step] == extreme for step in kept)
    assert len(kept) <= last + best + 1 + (0 if every is None else sum(step % every == 0 for step in scores))


@given(scores=scores_by_step, mode=modes)
def test_of_equal_scores_the_earlier_is_the_better(scores: dict[int, float | None], mode: str) -> None:
    """As in the trainer, where only a strict improvement makes a new best."""
    ranking = by_score(scores, mode)  # type: ignore[arg-type]
    for earlier, later in pairwise(ranking):
        first, second = scores[earlier], scores[later]
        assert first is not None
        assert second is not None
        assert (first < second) == (mode == "min") or (first == second and earlier < later)


def test_a_step_saved_twice_is_kept_as_it_was(tmp_path: Path) -> None:
    """The end of a run often falls on a step that is already saved: nothing is written again."""
    store = store_in(tmp_path)
    save(store, 1, weights(1), score=0.5)
    before = (tmp_path / "checkpoints" / "step-00000001").stat().st_ino
    save(store, 1, weights(1))
    save(store, 1, weights(1), score=0.5)
    assert (tmp_path / "checkpoints" / "step-00000001").stat().st_ino == before


def test_a_step_saved_again_with_a_score_is_replaced(tmp_path: Path) -> None:
    """The validation after a save changes the state too (best score, early stopping)."""
    store = store_in(tmp_path)
    save(store, 1, weights(1))
    save(store, 1, weights(2), score=0.5)
    best = store.best()
    assert best is not None
    assert_same(best.load(), weights(2))
    assert names(tmp_path) == ["best", "last", "step-00000001"]


def test_what_a_crash_left_is_tidied_up_by_the_next_save(tmp_path: Path) -> None:
    """Unfinished, half removed, and set aside: a whole one that was set aside is found and put back."""
    store = store_in(tmp_path, keep_last=5)
    save(store, 1, weights(1))
    save(store, 2, weights(2))
    folder = tmp_path / "checkpoints"
    (folder / "step-00000002").rename(folder / ".replaced-step-00000002")
    for left in (".tmp-step-00000003", ".old-step-00000000"):
        (folder / left).mkdir()
        (folder / left / "model.safetensors").write_bytes(b"part")
    (folder / ".tmp-last").symlink_to("step-00000003")
    other = store_in(tmp_path, keep_last=5)
    newest = other.newest()
    assert newest is not None
    assert_same(newest.load(), weights(2))
    save(other, 3, weights(3))
    assert names(tmp_path) == ["last", "step-00000001", "step-00000002", "step-00000003"]


def test_readers_change_nothing(tmp_path: Path) -> None:
    """Evaluating a run that is training must not tidy up under its hands."""
    store = store_in(tmp_path)
    save(store, 1, weights(1))
    (tmp_path / "checkpoints" / ".tmp-step-00000002").mkdir()
    before = names(tmp_path)
    reader = store_in(tmp_path)
    for look in (reader.newest, reader.best, reader.steps, reader.close):
        look()
    assert names(tmp_path) == before


def test_a_reader_finds_a_whole_checkpoint_while_another_process_saves(tmp_path: Path) -> None:
    """The directory being read may be removed by retention at any time; the reader then takes a newer one."""
    writer = store_in(tmp_path, keep_last=1, keep_best=0)
    save(writer, 0, weights(0))
    stop = threading.Event()

    def write() -> None:
        step = 0
        while not stop.is_set():
            step += 1
            save(writer, step, weights(step))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        reader = store_in(tmp_path)
        seen = [reader.newest() for _ in range(50)]
    finally:
        stop.set()
        thread.join()
    assert all(checkpoint is not None for checkpoint in seen)


def test_a_failed_save_is_told_once_and_the_next_may_succeed(tmp_path: Path) -> None:
    """By `failed` to those who ask, else by `wait` or `close`; with cause, place and what is left."""
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    store = store_in(tmp_path)
    store.save(1, {})
    with pytest.raises(CheckpointError, match=r"step 1 was not saved: .*there is no whole checkpoint yet"):
        store.wait()
    store.wait()
    store.save(2, {})
    failure = None
    while failure is None:
        failure = store.failed()  # does not wait
    assert "step 2 was not saved" in str(failure)
    assert store.failed() is None
    (tmp_path / "checkpoints").unlink()
    save(store, 3)
    assert store.steps() == [3]
    (tmp_path / "checkpoints").rename(tmp_path / "away")
    (tmp_path / "checkpoints").write_text("")
    store.save(4, {})
    with pytest.raises(CheckpointError, match="step 4 was not saved"):
        store.close()


def test_the_process_ends_only_when_the_save_is_done(tmp_path: Path) -> None:
    """A script that forgets to wait at its end loses nothing."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from checkpoint_states import store_in, weights
store_in(Path({str(tmp_path)!r})).save(1, weights(0, size=1_000_000))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(flambeau.__file__).parents[1])
    newest = store_in(tmp_path).newest()
    assert newest is not None
    assert_same(newest.load(), weights(0, size=1_000_000))


def test_nothing_in_this_room_can_unpickle() -> None:
    """No pickle, marshal, shelve, dill or joblib, no torch.load or torch.save, no numpy.load, eval or exec."""
    forbidden = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "eval", "exec"}
    for file in Path(flambeau.checkpoint.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found = {(node.module or "").split(".")[0]}
            elif isinstance(node, ast.Name):
                found = {node.id}
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found = (
                    {"pickle"}
                    if (node.value.id, node.attr)
                    in {(module, name) for module in ("torch", "np", "numpy") for name in ("load", "save")}
                    else set()
                )
            else:
                continue
            assert not found & forbidden, f"{file.name}:{node.lineno}: {found & forbidden}"
