"""Checkpoints that several processes write together: whole or absent, verified, read by any number, never unpickled."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp  # once, for all processes that are forked from this one
import torch.distributed.fsdp
from checkpoint_states import assert_same, store_in
from safetensors.torch import load_file
from support.fates import Crew
from support.processes import together
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from flambeau.checkpoint import Checkpoint, CheckpointStore
from flambeau.checkpoint.export import export_safetensors
from flambeau.checkpoint.sharded_store import ShardedStore
from flambeau.checkpoint.shards import ShardReader
from flambeau.config.sections import CheckpointSettings
from flambeau.errors import CheckpointError
from flambeau.runtime.world import current_world

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64, torch.complex128)
"""The last is one that safetensors lacks."""


def tensors(seed: int) -> dict[str, torch.Tensor]:
    """What lies in pieces: all dtypes, and sizes that no number of processes divides."""
    generator = torch.Generator().manual_seed(seed)
    found = {f"of.{dtype}": torch.randn(7, 3, generator=generator).mul(9).to(dtype) for dtype in DTYPES}
    return found | {"one": torch.randn(1, 5, generator=generator), "flat": torch.randn(11, generator=generator)}


def state(seed: int, *, sharded: bool, rank: int = 0) -> dict[str, Any]:
    """A run's state: weights and an optimizer in pieces, and what rank 0 alone has to say."""
    weights = tensors(seed)
    moments = {index: {"step": torch.tensor(3.0), "mean": value} for index, value in enumerate(weights.values())}
    if sharded:
        mesh = init_device_mesh("cpu", (current_world().size,))
        weights = {name: distribute_tensor(value, mesh, [Shard(0)]) for name, value in weights.items()}
        for entry in moments.values():
            entry["mean"] = distribute_tensor(entry["mean"], mesh, [Shard(0)])
    return {
        "model": {**weights, "buffer": torch.arange(4) + seed},
        "optimizer": {"state": moments, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]},
        "numbers": {"step": seed, "rank": rank, "random": np.arange(3)},
    }


class Folder:
    """A store of all processes, that keeps what it warns of."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.world = current_world()
        self.warned: list[str] = []
        self.store = ShardedStore(
            folder / "checkpoints",
            settings=CheckpointSettings(**settings),
            warn=self.warned.append,
            world=self.world,
        )

    def save(self, step: int, **arguments: Any) -> None:
        self.store.save(step, state(step, sharded=True, rank=self.world.rank), **arguments)
        self.store.wait()


def save_some(folder: Path, steps: list[int], **settings: Any) -> None:
    store = Folder(folder, **settings)
    for step in steps:
        store.save(step, score=step / 10)
    store.store.close()
    assert store.warned == []


def newest_in_pieces(folder: Path) -> dict[str, Any]:
    """The newest checkpoint as this number of processes reads it, its pieces gathered; and what was warned of."""
    own = Folder(folder)
    checkpoint = own.store.newest()
    assert checkpoint is not None
    model = state(0, sharded=True)
    pieces = {f"model.{name}": value for name, value in model["model"].items() if name != "buffer"}
    pieces |= {f"optimizer.state.{i}.mean": entry["mean"] for i, entry in model["optimizer"]["state"].items()}

    def like(name: str, shape: tuple[int, ...]) -> torch.Tensor | None:
        return pieces.get(name)

    found = checkpoint.load(like=like)
    for name, value in found["model"].items():
        assert hasattr(value, "to_local") == (name != "buffer")
    gathered = {name: getattr(value, "full_tensor", lambda v=value: v)() for name, value in found["model"].items()}
    means = {i: entry["mean"].full_tensor() for i, entry in found["optimizer"]["state"].items()}
    return {"step": checkpoint.step, "model": gathered, "means": means, "warned": own.warned}


def test_one_process_reads_what_several_have_written(tmp_path: Path) -> None:
    """Every bit of every dtype, under plain names, as if one process had saved it: to predict, evaluate and resume."""
    together(3, save_some, tmp_path, [4])
    checkpoint = store_in(tmp_path).newest()
    assert checkpoint is not None
    assert_same(checkpoint.load(), state(4, sharded=False))
    assert_same(checkpoint.load("model")["model"]["of.torch.float32"], tensors(4)["of.torch.float32"])
    files = {path.name for path in checkpoint.path.iterdir()}
    assert files == {
        "manifest.json", "model.safetensors", "shards.json", "state.json", "state.safetensors",
        *(f"rank-{rank:05d}.safetensors" for rank in range(3)),
    }  # fmt: skip
    assert set(checkpoint.manifest["files"]) == files - {"manifest.json"}
    assert checkpoint.manifest["format"] == 2
    pieces = load_file(checkpoint.path / "rank-00001.safetensors")
    assert torch.equal(pieces["model.of.torch.float32"], tensors(4)["of.torch.float32"][3:6])


def read_all(folders: list[Path]) -> list[dict[str, Any]]:
    return [newest_in_pieces(folder) for folder in folders]


def test_any_number_of_processes_reads_its_pieces(tmp_path: Path) -> None:
    """Written by 1, 2 or 3, read by 2 or 3: also what one process alone has written."""
    store = store_in(tmp_path / "1")
    store.save(4, state(4, sharded=False))
    store.close()
    for writers in (2, 3):
        together(writers, save_some, tmp_path / str(writers), [4])
    for readers in (2, 3):
        for found in together(readers, read_all, [tmp_path / str(writers) for writers in (1, 2, 3)]):
            for entry in found:
                assert entry["step"] == 4
                assert_same(entry["model"], {**tensors(4), "buffer": torch.arange(4) + 4})
                assert_same(entry["means"], dict(enumerate(tensors(4).values())))


def through_torch(folder: Path) -> dict[str, torch.Tensor]:
    """Read by `torch.distributed.checkpoint.load` itself."""
    targets = {f"model.{name}": torch.zeros_like(value) for name, value in tensors(4).items()}
    dcp.load(targets, storage_reader=ShardReader(folder / "checkpoints" / "step-00000004"))
    return targets


def test_torchs_own_loader_reads_it_through_the_reader(tmp_path: Path) -> None:
    """A program without Flambeau's loop can use the shards."""
    together(2, save_some, tmp_path, [4])
    for found in together(3, through_torch, tmp_path):
        assert_same(found, {f"model.{name}": value for name, value in tensors(4).items()})


def listen_for_pickle(folder: Path) -> list[str]:
    """Classes that were looked up by pickle while a checkpoint was found, verified and read in two ways."""
    asked: list[str] = []
    armed = [False]
    sys.addaudithook(lambda event, args: asked.append(str(args)) if armed[0] and event == "pickle.find_class" else None)
    torch.load(_pickled(folder), weights_only=False)  # the ear works
    armed[0] = True
    import pickle

    pickle.loads(pickle.dumps(Path()))
    assert asked
    asked.clear()
    newest_in_pieces(folder)
    checkpoint = Checkpoint.open(folder / "checkpoints" / "last")
    checkpoint.verify()
    checkpoint.load()
    return asked


def _pickled(folder: Path) -> Path:
    target = folder / f"any-{current_world().rank}.pt"
    torch.save({"a": 1}, target)
    return target


def test_nothing_is_unpickled_while_a_checkpoint_is_read(tmp_path: Path) -> None:
    """Not even between the processes: torch's own metadata file would be."""
    together(2, save_some, tmp_path, [4])
    assert together(2, listen_for_pickle, tmp_path) == [[], []]
    for path in (tmp_path / "checkpoints" / "step-00000004").iterdir():
        assert path.suffix in (".json", ".safetensors")


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "changed": lambda content: content[: len(content) // 2] + b"?" + content[len(content) // 2 + 1 :],
    "cut": lambda content: content[:-3],
    "gone": lambda content: None,
}


def test_a_damaged_file_is_found_by_all_and_the_checkpoint_before_is_used(tmp_path: Path) -> None:
    """Each process reads a share of the files, and all come to the same judgement."""
    together(2, save_some, tmp_path / "whole", [3, 4])
    cases = []
    for name in ("rank-00001.safetensors", "shards.json", "state.json", "manifest.json"):
        for damage, harm in DAMAGES.items():
            folder = tmp_path / f"{damage} {name}"
            shutil.copytree(tmp_path / "whole", folder, symlinks=True)
            file = folder / "checkpoints" / "step-00000004" / name
            content = harm(file.read_bytes())
            file.unlink()
            if content is not None:
                file.write_bytes(content)
            cases.append((folder, name))
    main, other = together(2, read_all, [folder for folder, _ in cases])
    for (folder, name), one, two in zip(cases, main, other, strict=True):
        assert one["step"] == two["step"] == 3, folder
        assert len(one["warned"]) == 1, folder
        assert "checkpoint step-00000004 is damaged" in one["warned"][0]
        assert name in one["warned"][0]
        assert two["warned"] == []
        with pytest.raises(CheckpointError, match="damaged"):
            store_in(folder).at(4)


def save_with_little_room(folder: Path, rank: int) -> tuple[str, list[str], list[str], int]:
    """What is said when one process's file may not grow, what is left then, and what the next save leaves."""
    own = Folder(folder, keep_last=5)
    own.save(1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if own.world.rank == rank:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    own.store.save(2, state(2, sharded=True))
    try:
        own.store.wait()
        said = "nothing was said"
    except CheckpointError as failure:
        said = str(failure)
    own.world.barrier()  # rank 0 clears up
    left = sorted(path.name for path in own.store.folder.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    own.world.barrier()
    own.save(2)
    newest = own.store.newest()
    assert newest is not None
    return said, left, sorted(path.name for path in own.store.folder.iterdir()), newest.step


@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_fails_one_process_fails_the_save_of_all_and_leaves_nothing(tmp_path: Path, rank: int) -> None:
    """The run goes on, the next save succeeds; rank 0 says what failed, why, and what is still there."""
    answers = together(2, save_with_little_room, tmp_path, rank)
    for said, left, later, step in answers:
        assert said.startswith("the checkpoint of step 2 was not saved")
        assert left == ["last", "step-00000001"]
        assert later == ["last", "step-00000001", "step-00000002"]
        assert step == 2
    assert "the file is larger than the file system or `ulimit -f` allows (EFBIG" in answers[0][0]
    assert f"rank-0000{rank}.safetensors" in answers[0][0]
    assert "the newest whole checkpoint is" in answers[0][0]


def save_where_others_do_not_see(folder: Path) -> str:
    """Each process has a folder of its own, as on machines without a shared file system."""
    own = Folder(folder / str(current_world().rank))
    own.store.save(1, state(1, sharded=True))
    try:
        own.store.wait()
    except CheckpointError as failure:
        return str(failure)
    return "nothing was said"


def test_a_folder_that_is_not_shared_is_refused_with_the_reason(tmp_path: Path) -> None:
    """And not taken for a checkpoint."""
    said, _ = together(2, save_where_others_do_not_see, tmp_path)
    assert "process 1 does not see the folder" in said
    assert "keep the run on a file system that all machines share" in said
    assert list((tmp_path / "0" / "checkpoints").iterdir()) == []


def save_again_and_again(folder: Path) -> None:
    own = Folder(folder, keep_last=2)
    for step in range(1, 10**6):
        own.save(step)
        if own.world.is_main:
            print(f"saved {step}", flush=True)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_killed_while_it_saves_leaves_whole_checkpoints_only(tmp_path: Path, rank: int) -> None:
    """The other process ends with an error, and the next run begins where the last whole one is."""
    for instant in (0.0, 0.007, 0.013, 0.029):
        crew = Crew(tmp_path, 2, save_again_and_again, tmp_path)
        crew.wait_for(0, "saved 2")
        time.sleep(instant)
        crew.kill(rank, signal.SIGKILL)
        fates = crew.fates()
        assert fates[rank].status == -signal.SIGKILL
        assert fates[1 - rank].status == 1
        said = [int(line.split()[1]) for line in crew.output(0).splitlines() if line.startswith("saved ")]
        found = together(2, newest_in_pieces, tmp_path)
        assert found[0]["step"] in (said[-1], said[-1] + 1)
        assert found[0]["warned"] == []
        assert_same(found[0]["model"], {**tensors(found[0]["step"]), "buffer": torch.arange(4) + found[0]["step"]})


def keep_and_prune(folder: Path) -> tuple[list[int], int, int, bool]:
    own = Folder(folder, keep_last=2, keep_best=1)
    for step, score in {1: 0.1, 2: 0.9, 3: 0.2, 4: 0.3, 5: 0.4}.items():
        own.save(step, score=score)
    inode = (own.store.folder / "step-00000005").stat().st_ino
    own.world.barrier()
    own.save(5)  # saved already: left as it is
    own.save(5, score=0.4)
    same = (own.store.folder / "step-00000005").stat().st_ino == inode
    best, newest = own.store.best(), own.store.newest()
    assert best is not None
    assert newest is not None
    own.world.barrier()
    return own.store.steps(), best.step, newest.step, same


def test_retention_links_and_saving_a_step_twice_are_as_for_one_process(tmp_path: Path) -> None:
    """Rank 0 removes; the others know what is there."""
    assert together(2, keep_and_prune, tmp_path) == [([2, 4, 5], 2, 5, True)] * 2
    assert (tmp_path / "checkpoints" / "last").readlink() == Path("step-00000005")
    assert (tmp_path / "checkpoints" / "best").readlink() == Path("step-00000002")


def change_after_saving(folder: Path) -> bool:
    """Whether `save` returned before the checkpoint was there."""
    own = Folder(folder)
    current = state(1, sharded=True)
    own.store.save(1, current)
    early = not (own.store.folder / "step-00000001").exists()
    for value in current["model"].values():
        getattr(value, "to_local", lambda v=value: v)().fill_(7)  # the training goes on
    own.store.close()
    return early


def test_what_changes_after_a_save_is_not_in_it(tmp_path: Path) -> None:
    """The copy is taken at once, the disk's part of the work is done behind the training's back."""
    together(2, change_after_saving, tmp_path)
    checkpoint = store_in(tmp_path).newest()
    assert checkpoint is not None
    assert_same(checkpoint.load("model")["model"], state(1, sharded=False)["model"])


def test_a_store_of_one_process_refuses_pieces(tmp_path: Path) -> None:
    """It would write one process's piece as if it were all."""

    def refused() -> str:
        store = CheckpointStore(tmp_path, settings=CheckpointSettings(), warn=print)
        with pytest.raises(CheckpointError) as refusal:
            store.save(1, state(1, sharded=True))
        return str(refusal.value)

    assert all("a checkpoint cannot hold" in said for said in together(2, refused))


def test_a_tensor_that_is_not_whole_in_the_index_is_an_error(tmp_path: Path) -> None:
    """Memory that nothing was read into is never given out, though manifest and checksums agree."""
    together(2, save_some, tmp_path, [4])
    folder = tmp_path / "checkpoints" / "step-00000004"
    index = json.loads((folder / "shards.json").read_bytes())
    index["tensors"]["model.flat"]["chunks"].pop()
    (folder / "shards.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"does not say where all of 'model\.flat' lies"):
        Checkpoint.open(folder).load("model")


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(512, 512) for _ in range(48))


def save_large(folder: Path) -> None:
    from flambeau.config.sections import FsdpSettings, TrainerSettings
    from flambeau.distributed.sharding import prepare_model

    torch.manual_seed(0)
    fsdp = FsdpSettings(blocks=["Linear"])
    model = prepare_model(Weights(), TrainerSettings(fsdp=fsdp, steps=1), current_world(), torch.device("cpu"))
    own = Folder(folder)
    own.store.save(1, {"model": model.state_dict()})
    own.store.close()


def resident(what: str) -> int:
    """Bytes of memory of this process: `VmRSS` now, `VmHWM` at most since `forget_the_most`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def export_and_measure(folder: Path) -> tuple[int, int]:
    """Bytes that were written, and by how much memory grew meanwhile."""
    checkpoint = Checkpoint.open(folder / "checkpoints" / "last")
    export_safetensors(checkpoint, "model", folder / "model.safetensors")  # what is loaded once does not count
    Path("/proc/self/clear_refs").write_text("5")  # forget the most so far
    before = resident("VmRSS")
    size = export_safetensors(checkpoint, "model", folder / "model.safetensors")
    return size, resident("VmHWM") - before


def test_an_export_is_the_models_state_and_takes_the_memory_of_a_few_tensors(tmp_path: Path) -> None:
    """50 MB in 48 weights, in pieces."""
    together(2, save_large, tmp_path)
    [(size, grown)] = together(1, export_and_measure, tmp_path)
    output = tmp_path / "model.safetensors"
    assert size == output.stat().st_size > 50e6
    assert grown < 16e6
    torch.manual_seed(0)
    assert_same(load_file(output), dict(sorted(Weights().state_dict().items())))


def test_an_export_names_what_its_format_cannot_hold(tmp_path: Path) -> None:
    """complex128; and leaves no file."""
    together(2, save_some, tmp_path, [4])
    checkpoint = store_in(tmp_path).newest()
    assert checkpoint is not None
    with pytest.raises(CheckpointError, match=r"'of\.torch\.complex128' of .* which safetensors cannot hold"):
        export_safetensors(checkpoint, "model", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
