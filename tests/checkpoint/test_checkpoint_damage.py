"""A damaged checkpoint is named and passed over; nothing in it can run."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoint_states import assert_same, save, store_in, weights

from flambeau.errors import CheckpointError

FILES = ["model.safetensors", "state.safetensors", "state.json", "manifest.json"]


def flip(file: Path) -> None:
    """One bit in the middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


DAMAGES = [flip, truncate, empty, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_newest_is_passed_over_with_a_warning_that_names_the_file(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """Every file, each in several ways; the checkpoint before it is used."""
    store = store_in(tmp_path)
    save(store, 1, weights(1), score=0.5)
    save(store, 2, weights(2), score=0.9)
    damage(tmp_path / "checkpoints" / "step-00000002" / name)
    for find in ("newest", "best"):
        warnings: list[str] = []
        reader = store_in(tmp_path, warn=warnings.append)
        found = getattr(reader, find)()
        assert_same(found.load(), weights(1))
        if warnings:
            assert len(warnings) == 1
            assert "step-00000002 is damaged" in warnings[0]
            assert name in warnings[0]
        else:
            assert (find, name) == ("best", "manifest.json")  # without its score it is no candidate
    with pytest.raises(CheckpointError, match=name):
        store_in(tmp_path).at(2)


def test_every_single_flipped_bit_of_a_small_checkpoint_is_noticed(tmp_path: Path) -> None:
    """One bit of each byte of each file, the manifest's own included."""
    store = store_in(tmp_path)
    save(store, 1, {"model": {"w": np.arange(3)}, "x": 1}, score=0.5)
    checkpoint = store.at(1)
    for file in sorted(checkpoint.path.iterdir()):
        whole = file.read_bytes()
        for position in range(len(whole)):
            if file.name == "manifest.json" and whole[position : position + 1].isspace():
                continue  # between tokens it may still be a space; it holds nothing
            changed = bytearray(whole)
            changed[position] ^= 1 << position % 8
            file.write_bytes(changed)
            with pytest.raises(CheckpointError):
                store_in(tmp_path).at(1)
        file.write_bytes(whole)
    store_in(tmp_path).at(1)


def test_when_all_are_damaged_each_is_named_and_none_is_used(tmp_path: Path) -> None:
    """Starting again from nothing is the caller's decision, not ours."""
    store = store_in(tmp_path)
    for step in (1, 2):
        save(store, step, weights(step))
        flip(tmp_path / "checkpoints" / f"step-0000000{step}" / "model.safetensors")
    warnings: list[str] = []
    assert store_in(tmp_path, warn=warnings.append).newest() is None
    assert ["step-00000002" in warnings[0], "step-00000001" in warnings[1]] == [True, True]


def test_a_run_that_goes_on_from_before_a_damaged_one_never_loses_its_only_whole_one(tmp_path: Path) -> None:
    """Even when only one may be kept and the damaged one has the higher step; at that step it is replaced."""
    store = store_in(tmp_path, keep_last=2, keep_best=0)
    save(store, 10, weights(10))
    save(store, 20, weights(20))
    flip(tmp_path / "checkpoints" / "step-00000020" / "state.json")
    warnings: list[str] = []
    resumed = store_in(tmp_path, keep_last=1, keep_best=0, warn=warnings.append)
    for step in (10, 15, 18):
        if step > 10:
            save(resumed, step, weights(step))
        newest = resumed.newest()
        assert newest is not None
        assert newest.step == step
    assert len(warnings) == 1
    assert (tmp_path / "checkpoints" / "last").readlink() == Path("step-00000018")
    save(resumed, 20, weights(21))
    assert_same(store_in(tmp_path).at(20).load(), weights(21))
    assert resumed.steps() == [20]


def test_a_run_that_goes_on_from_an_earlier_step_keeps_what_it_saves(tmp_path: Path) -> None:
    """Even when only one may be kept and a later step is there, whole."""
    save(store_in(tmp_path), 20, weights(20))
    store = store_in(tmp_path, keep_last=1, keep_best=0)
    save(store, 15, weights(15))
    assert store.steps() == [15, 20]


def test_a_checkpoint_that_was_renamed_by_hand_is_refused(tmp_path: Path) -> None:
    """Its name says one step and its content is of another."""
    store = store_in(tmp_path)
    save(store, 1, weights(1))
    (tmp_path / "checkpoints" / "step-00000001").rename(tmp_path / "checkpoints" / "step-00000009")
    with pytest.raises(CheckpointError, match="of step 1"):
        store_in(tmp_path).at(9)


class Trap:
    """An object whose unpickling would leave a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("name", FILES)
def test_a_pickle_in_the_place_of_a_file_is_never_run(tmp_path: Path, name: str) -> None:
    """Even where the manifest vouches for it."""
    mark = tmp_path / "mark"
    store = store_in(tmp_path)
    save(store, 1, weights(1))
    checkpoint = store.at(1)
    (checkpoint.path / name).write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(CheckpointError):
        checkpoint.load()
        store.at(1)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.exists()


def test_a_checkpoint_of_a_newer_format_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    """To go back to an older one in silence would throw work away."""
    from flambeau.checkpoint.reading import manifest_bytes

    store = store_in(tmp_path)
    save(store, 1, weights(1))
    save(store, 2, weights(2))
    file = tmp_path / "checkpoints" / "step-00000002" / "manifest.json"
    content = json.loads(file.read_text())
    del content["sha256"]
    file.write_bytes(manifest_bytes({**content, "format": 99, "flambeau": "9.0"}))
    with pytest.raises(CheckpointError, match=r"has format 99(.|\n)*use Flambeau 9.0 or newer"):
        store_in(tmp_path).newest()


def test_sharded_checkpoints_of_past_releases_still_load(tmp_path: Path) -> None:
    """Two processes have written it; one reads it."""
    import torch

    shutil.copytree(Path(__file__).parent / "format-2", tmp_path / "checkpoints" / "step-00000042")
    wanted = {
        "model": {
            "weight": torch.arange(15, dtype=torch.bfloat16).reshape(5, 3),
            "one": torch.arange(2.0).reshape(1, 2),
            "count": torch.tensor(7),
        },
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.arange(15.0).reshape(5, 3)}},
            "betas": (0.9, 0.999),
        },
        "complex": torch.arange(3).to(torch.complex128) * 1j,
    }
    assert_same(store_in(tmp_path).at(42).load(), wanted)


def test_checkpoints_of_past_releases_still_load(tmp_path: Path) -> None:
    """One checkpoint of each format is kept in the repository; none may ever be made anew."""
    import torch

    shutil.copytree(Path(__file__).parent / "format-1", tmp_path / "checkpoints" / "step-00000042")
    state = store_in(tmp_path).at(42).load()
    wanted = {
        "model": {"weight": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)},
        "ema": None,
        "optimizer": {"state": {0: {"exp_avg": torch.arange(4.0).reshape(2, 2).t()}}, "betas": (0.9, 0.999)},
        "random": {"numpy": np.arange(3, dtype=np.uint32), "torch": torch.arange(3, dtype=torch.uint8)},
        "various": [np.float32(1.5), b"\x00\xff", float("inf"), 2**70, "\ud800", {"$a": -0.0}, True],
        "complex": torch.tensor([1 + 2j], dtype=torch.complex128),
    }
    assert_same(state, wanted)
