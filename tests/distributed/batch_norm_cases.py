"""Batch norm in several processes: the cases, what one process of several computes, and what one alone does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from flambeau.distributed.batch_norm import convert, local_norms, uncounted, unsynced
from flambeau.runtime.world import current_world


def _network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2, momentum=None)
    )


def _half_frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.BatchNorm1d(5), nn.BatchNorm1d(5))
    model[1].requires_grad_(False)
    model[2].eval()
    return model


class _Half(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.bfloat16()


def _halved() -> nn.Module:
    return nn.Sequential(_Half(), nn.BatchNorm1d(5))


@dataclass(frozen=True)
class Case:
    """A module, the samples that each of three processes has (0: a borrowed row), and the shape of one."""

    build: Callable[[], nn.Module]
    sizes: tuple[int, int, int]
    shape: tuple[int, ...]
    prepare: Callable[[Tensor], Tensor] = lambda inputs: inputs
    dtype: torch.dtype = torch.float64
    autocast: bool = False
    tolerance: float = 1e-10
    statistics: float = 1e-10


CASES = {
    "vectors": Case(lambda: nn.BatchNorm1d(5), (4, 4, 4), (5,)),
    "sequences": Case(lambda: nn.BatchNorm1d(5), (3, 1, 2), (5, 7)),
    "images": Case(lambda: nn.BatchNorm2d(3), (3, 2, 2), (3, 4, 5)),
    "volumes": Case(lambda: nn.BatchNorm3d(2), (2, 2, 1), (2, 3, 4, 2)),
    "one a process": Case(lambda: nn.BatchNorm1d(5), (1, 1, 1), (5,)),
    "a borrowed row": Case(lambda: nn.BatchNorm1d(5), (2, 1, 0), (5,)),
    "two borrowed rows": Case(lambda: nn.BatchNorm2d(3), (3, 0, 0), (3, 2, 2)),
    "no momentum": Case(lambda: nn.BatchNorm2d(3, momentum=None), (3, 2, 2), (3, 4, 5)),
    "no running statistics": Case(lambda: nn.BatchNorm2d(3, track_running_stats=False), (3, 2, 2), (3, 4, 5)),
    "no weights": Case(lambda: nn.BatchNorm2d(3, affine=False), (3, 2, 2), (3, 4, 5)),
    "channels last": Case(
        lambda: nn.BatchNorm2d(3), (3, 2, 2), (3, 4, 5), lambda inputs: inputs.to(memory_format=torch.channels_last)
    ),
    "far from zero": Case(lambda: nn.BatchNorm1d(5), (3, 2, 2), (5, 7), lambda inputs: inputs + 100),
    "a network": Case(_network, (3, 1, 0), (3, 6, 6)),
    "half frozen": Case(_half_frozen, (3, 2, 2), (5,)),
    "float32, far from zero": Case(
        lambda: nn.BatchNorm1d(5),
        (3, 2, 2),
        (5, 7),
        lambda inputs: inputs + 1000,
        torch.float32,
        tolerance=3e-4,
        statistics=1e-5,
    ),
    "bf16": Case(_halved, (3, 1, 2), (5, 7), dtype=torch.float32, tolerance=2e-2, statistics=1e-5),
    "autocast": Case(
        _network, (3, 1, 2), (3, 6, 6), dtype=torch.float32, autocast=True, tolerance=2e-2, statistics=1e-2
    ),
}


def run(case: Case, sizes: list[int], rank: int | None) -> dict[str, Any]:
    """Two steps of one process of several, or (rank None) of one that has the whole batch.

    Returns:
        outputs, gradients of the inputs and of the parameters (added up over processes), and buffers.
    """
    torch.manual_seed(1)
    model = case.build().to(case.dtype)
    if rank is not None:
        convert(model)
        assert local_norms(model) == []
    found: dict[str, Any] = {"outputs": [], "inputs": []}
    for _ in range(2):
        whole = case.prepare(torch.randn(sum(sizes), *case.shape, dtype=torch.float64)).to(case.dtype)
        start = sum(sizes[:rank]) if rank is not None else 0
        stop = start + sizes[rank] if rank is not None else len(whole)
        borrowed = stop == start
        inputs = (whole[:1] if borrowed else whole[start:stop]).clone(memory_format=torch.preserve_format)
        inputs.requires_grad_()
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
            if borrowed:
                with uncounted(model):
                    outputs = model(inputs)
            else:
                outputs = model(inputs)
        towards = torch.randn(len(whole), *outputs.shape[1:], dtype=torch.float64).to(case.dtype)
        towards = towards[:1] * 0 if borrowed else towards[start:stop]
        (outputs * towards).sum().backward()
        assert inputs.grad is not None and (not borrowed or not inputs.grad.any())
        found["outputs"].append(outputs.detach()[: stop - start])
        found["inputs"].append(inputs.grad[: stop - start])
    found["parameters"] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if rank is not None:
        for gradient in found["parameters"].values():
            distributed.all_reduce(gradient)
    found["buffers"] = dict(model.named_buffers())
    return found


def no_samples(rank: int) -> None:
    """A process whose input is of size 0 normalises nothing, and the others go on."""
    layer = nn.BatchNorm2d(3).double()
    convert(layer)
    inputs = torch.randn(0 if rank == 0 else 2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    layer(inputs).sum().backward()
    assert inputs.grad is not None and inputs.grad.shape == inputs.shape
    assert layer.running_mean.any()


def one_value(rank: int) -> None:
    """One sample in all has no variance: every process says so, and none waits."""
    layer = nn.BatchNorm1d(3)
    convert(layer)
    try:
        with uncounted(layer) if rank else torch.enable_grad():
            layer(torch.randn(1, 3))
    except ValueError as error:
        assert "more than 1 value a channel" in str(error)
    else:
        raise AssertionError("one value was normalised")


def alone(rank: int) -> None:
    """Without synchronisation a process can try by itself what it likes."""
    layer = nn.BatchNorm1d(3).double()
    convert(layer)
    if rank == 0:  # the others would be waited for in vain
        inputs = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
        twin, plain = inputs.detach().clone().requires_grad_(), nn.BatchNorm1d(3).double()
        with unsynced(layer):
            layer(inputs).square().sum().backward()
            layer(torch.randn(1, 3, dtype=torch.float64))  # one row alone is no fault of the batch
        plain(twin).square().sum().backward()
        torch.testing.assert_close(inputs.grad, twin.grad, rtol=0, atol=1e-12)
    distributed.barrier()


def in_one_of_several() -> dict[str, Any]:
    """What one process of several does with all cases."""
    world = current_world()
    found = {name: run(case, list(case.sizes[: world.size]), world.rank) for name, case in CASES.items()}
    no_samples(world.rank)
    one_value(world.rank)
    alone(world.rank)
    return found


def compiled() -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients of a network as it is, and through the compiler."""
    rank = current_world().rank

    def steps(compiler: Callable[[nn.Module], Any]) -> list[Tensor]:
        torch.manual_seed(1)
        model = _network().double()
        convert(model)
        forward, found = compiler(model), []
        for borrowed in (False, rank == 1):
            inputs = torch.randn(6, 3, 6, 6, dtype=torch.float64)[: 1 if borrowed else 6 - rank]
            with uncounted(model) if borrowed else torch.enable_grad():
                outputs = forward(inputs)
            outputs.pow(3).sum().backward()
            found.append(outputs.detach())
        return [*found, *(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()]

    return steps(lambda model: model), steps(lambda model: torch.compile(model, backend="aot_eager"))
