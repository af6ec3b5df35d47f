"""When memory runs out: what was on the device, which batch it was, and what takes less."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flambeau.data import Batch
from flambeau.training.rehearsal import offending_batch, out_of_memory

if TYPE_CHECKING:
    from flambeau.training.trainer import Trainer

FOLDER = "out-of-memory"
"""The folder in the run folder."""


def explain_out_of_memory(trainer: Trainer, error: BaseException) -> None:
    """Note on an error that says that memory ran out what would take less, and keep what is known of it.

    In the run folder's `out-of-memory/`, for each rank: `rank-N.json` has the batch (the dataset's indices of its
    samples, shapes and types) and the memory in numbers, `rank-N.txt` torch's summary of the device's memory, and
    `rank-N.pickle` its snapshot, for https://pytorch.org/memory_viz; that is written for PyTorch's tools and never
    read here. Any other error is left as it is.
    """
    if not out_of_memory(error):
        return
    during, batch = offending_batch(error) or trainer.at_work or ("the start", None)
    advice = _advice(trainer, during)
    for line in advice:
        error.add_note(line)
    if trainer.run_folder is None:
        return
    report = {
        "step": trainer.current_step,
        "rank": trainer.world.rank,
        "device": str(trainer.device),
        "during": during,
        "error": f"{type(error).__name__}: {error}".split("\n")[0],
        "batch": None if batch is None else _describe(batch),
        "memory": _memory(trainer),
        "advice": advice,
    }
    place = trainer.run_folder.path / FOLDER / f"rank-{trainer.world.rank}"
    with contextlib.suppress(OSError, MemoryError, RuntimeError):  # there may be no memory for this either
        place.parent.mkdir(exist_ok=True)
        place.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
        if trainer.device.type == "cuda":
            _keep_device_memory(trainer.device, place)
        error.add_note(f"the batch and the memory are described in {place.with_suffix('.json')}")


def _advice(trainer: Trainer, during: str) -> list[str]:
    """What takes less memory, the best first."""
    from flambeau.training.trainer import Trainer

    settings, plain = trainer.settings, type(trainer).update is Trainer.update
    lines = []
    if during.startswith(("validation", "evaluation")):
        set_to = trainer.loader.eval_batch_size or "not set"
        lines.append(f"data.eval_batch_size: fewer samples at a time in evaluation (now {set_to})")
    if settings.micro_batch is None and plain and settings.fsdp is None and settings.accumulate == 1:
        lines.append("trainer.micro_batch: auto finds how many samples fit at a time; the result is the same")
    elif plain:
        taken = settings.micro_batch if settings.micro_batch is not None else f"{trainer.accumulate} parts of a batch"
        lines.append(f"trainer.micro_batch: fewer samples at a time (now {taken}); the result is the same")
    if settings.precision in ("fp32", "fp64") and trainer.device.type != "cpu":
        lines.append(f"trainer.precision: bf16 halves what activations take (now {settings.precision})")
    if settings.fsdp is not None and not settings.fsdp.activation_checkpointing:
        lines.append("trainer.fsdp.activation_checkpointing: true computes activations again instead of keeping them")
    if settings.fsdp is None and trainer.world.size > 1:
        lines.append("trainer.fsdp: each process keeps a part of the weights and of the optimizer's state")
    return [*lines, "torch.utils.checkpoint in the model keeps fewer activations; a smaller model needs less of all"]


def _describe(batch: Batch) -> dict[str, Any]:
    return {
        "size": batch.size,
        "global_size": batch.global_size,
        "ids": batch.ids.tolist(),
        "inputs": _shapes(batch.inputs),
        "targets": _shapes(batch.targets),
    }


def _shapes(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch."), "bytes": value.nbytes}
    if isinstance(value, dict):
        return {str(key): _shapes(item) for key, item in value.items()}
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__


def _memory(trainer: Trainer) -> dict[str, int]:
    """Bytes, by what they are."""
    found = {}
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        found["host_peak"] = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    device = trainer.device
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found |= {
            "device_total": total,
            "device_free": free,
            "allocated": torch.cuda.memory_allocated(device),
            "allocated_peak": torch.cuda.max_memory_allocated(device),
            "reserved": torch.cuda.memory_reserved(device),
        }
    return found


def _keep_device_memory(device: torch.device, place: Path) -> None:
    place.with_suffix(".txt").write_text(torch.cuda.memory_summary(device))
    dump = getattr(torch.cuda.memory, "_dump_snapshot", None)
    if dump is not None:
        with contextlib.suppress(RuntimeError):  # a build, or an allocator, without it
            dump(str(place.with_suffix(".pickle")))
