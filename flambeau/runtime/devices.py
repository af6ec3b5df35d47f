"""Which device a run uses."""

from __future__ import annotations

import torch

from flambeau.errors import UsageError


def resolve_device(choice: str | torch.device = "auto") -> torch.device:
    """The device that `choice` names: `auto` (an accelerator if there is one), `cpu`, `0`, `cuda:1`, `mps` ...

    Raises:
        UsageError: the device is not there; before any work.
    """
    if isinstance(choice, torch.device):
        return choice
    if choice == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device("cpu") if accelerator is None else torch.device(accelerator.type, 0)
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


def describe_hardware(device: torch.device) -> dict[str, str | int]:
    """What a run's record says of the machine it ran on."""
    facts: dict[str, str | int] = {"device": str(device), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["name"] = properties.name
        facts["memory_bytes"] = properties.total_memory
        facts["cuda"] = torch.version.cuda or ""
    return facts
