"""Making the same run give the same bits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic_algorithms(enabled: bool, device: torch.device, *, compiled: bool = False) -> Iterator[None]:
    """Deterministic kernels while the block runs; the caller's settings come back afterwards.

    `compiled`: torch.compile is in use, so its code generator is told too.
    On CUDA an operation that has no deterministic form raises an error that names it
    (https://docs.pytorch.org/docs/stable/notes/randomness.html).
    """
    if not enabled:
        yield
        return
    if device.type == "cuda":
        # cuBLAS reads this when its first handle is made; without it torch refuses matrix products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    mode = torch.get_deterministic_debug_mode()
    benchmark = torch.backends.cudnn.benchmark
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if compiled:
        torch.use_deterministic_algorithms(True)
    else:  # the same switch; the call above also imports the compiler to tell it, which costs a second
        torch.set_deterministic_debug_mode("error")
    torch.backends.cudnn.benchmark = False
    # Writing NaN into every torch.empty() finds bugs in kernels, at the price of a pass over memory each time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.backends.cudnn.benchmark = benchmark
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def seed_torch(value: int, device: torch.device) -> None:
    """Seed the generators that layers such as dropout draw from: the CPU's and `device`'s own."""
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(value)
    elif device.type == "mps":
        torch.mps.manual_seed(value)
