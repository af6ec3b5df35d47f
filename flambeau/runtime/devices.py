"""Which device a run uses."""

from __future__ import annotations

import os

import torch

from flambeau.errors import UsageError


def resolve_device(choice: str | torch.device = "auto", local_rank: int | None = None) -> torch.device:
    """The device that `choice` names: `auto` (an accelerator if there is one), `cpu`, `0`, `cuda:1`, `mps` ...

    Args:
        choice: of several devices (`0,1`), each process has one.
        local_rank: the number of this process among those of its machine, where there are several: `auto` is then the
            CUDA device of that number, or the CPU. None for a process that is alone.

    Raises:
        UsageError: the device is not there; before any work.
    """
    if isinstance(choice, torch.device):
        return choice
    if "," in choice:
        names = choice.split(",")
        if local_rank is None:
            raise UsageError(f"-d {choice}: one process uses one device", remedy="use -d " + names[0])
        if local_rank >= len(names):
            raise UsageError(f"-d {choice} names no device for process {local_rank} of this machine")
        choice = names[local_rank]
    if choice == "auto":
        return _best_device(local_rank)
    name = f"cuda:{choice}" if choice.isdigit() else choice
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"'{choice}' is not a device", remedy="use cpu, auto, a number (0), or a name such as cuda:0"
        ) from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            present = f"{count} CUDA device{'s' if count != 1 else ''}" if count else "no CUDA device"
            raise UsageError(
                f"device {name} was asked for, and this machine has {present}", remedy="use -d cpu or -d auto"
            )
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device mps was asked for, and this machine has none", remedy="use -d cpu or -d auto")
    return device


def _best_device(local_rank: int | None) -> torch.device:
    if local_rank is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device("cpu") if accelerator is None else torch.device(accelerator.type, 0)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if count == 1 and "SLURM_LOCALID" in os.environ:  # srun --gpus-per-task shows each process its own device alone
        return torch.device("cuda", 0)
    if local_rank >= count:
        raise UsageError(
            f"process {local_rank} of this machine has no CUDA device: there {'is' if count == 1 else 'are'} {count}",
            remedy="start as many processes as there are devices, or use -d cpu",
        )
    return torch.device("cuda", local_rank)


def describe_hardware(device: torch.device) -> dict[str, str | int]:
    """What a run's record says of the machine it ran on."""
    facts: dict[str, str | int] = {"device": str(device), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["name"] = properties.name
        facts["memory_bytes"] = properties.total_memory
        facts["cuda"] = torch.version.cuda or ""
    return facts
