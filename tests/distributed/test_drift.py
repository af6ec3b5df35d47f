"""Copies of a model that are not equal any more are found and named; equal ones pass in silence."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.fates import Crew
from support.processes import together
from torch import distributed as dist
from torch import nn

from flambeau.distributed import drift
from flambeau.distributed.drift import DriftError, ReplicaCheck
from flambeau.runtime.pulse import Pulse
from flambeau.runtime.watchdog import Watchdog
from flambeau.runtime.world import World, current_world

TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


def checksum(tensor: torch.Tensor) -> list[int]:
    return ReplicaCheck(Pulse(World()), {}, None)._checksum(tensor).tolist()


def flip(tensor: torch.Tensor, bit: int) -> None:
    """Change one bit of a tensor, counted from its beginning."""
    tensor.detach().view(-1).view(torch.uint8)[bit // 8] ^= 1 << (bit % 8)


# ---------------------------------------------------------------- the checksum


@given(
    length=st.integers(1, 300),
    kind=st.sampled_from(TYPES[:-1]),
    chunk=st.sampled_from([7, 64, 2**20]),
    place=st.floats(0, 1, exclude_max=True),
)
def test_any_flipped_bit_changes_the_checksum(length: int, kind: torch.dtype, chunk: int, place: float) -> None:
    """Of any type, at any place, however the tensor is cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drift, "CHUNK", chunk)
        tensor = torch.arange(length).to(kind)
        before = checksum(tensor)
        assert before == checksum(tensor.clone())
        flip(tensor, int(place * length * 8 * tensor.element_size()))
        assert before != checksum(tensor)


@given(length=st.integers(2, 300), kind=st.sampled_from(TYPES), data=st.data())
def test_elements_in_another_order_change_the_checksum(length: int, kind: torch.dtype, data: st.DataObject) -> None:
    """Their sum is the same, and their bits are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drift, "CHUNK", data.draw(st.sampled_from([7, 2**20])))
        first = data.draw(st.integers(0, length - 2))
        second = data.draw(st.integers(first + 1, length - 1))
        tensor = torch.zeros(length, dtype=kind)
        tensor[first] = 1
        swapped = torch.zeros(length, dtype=kind)
        swapped[second] = 1
        assert checksum(tensor) != checksum(swapped)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(0),
        torch.tensor(3.0),
        torch.arange(6.0).reshape(2, 3).t(),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.arange(7, dtype=torch.bfloat16)[3:],
        torch.tensor([1 + 2j, 3 - 1j]),
        torch.tensor([True, False, True]),
    ],
    ids=["empty", "scalar", "transposed", "channels last", "odd offset", "complex", "bool"],
)
def test_tensors_of_all_kinds_have_one(tensor: torch.Tensor) -> None:
    """It depends on the values alone, not on how they lie in memory."""
    assert checksum(tensor) == checksum(tensor.clone(memory_format=torch.contiguous_format))


def test_signs_of_zero_and_bits_of_nan_count() -> None:
    """Equal numbers are not enough."""
    assert checksum(torch.tensor([0.0])) != checksum(torch.tensor([-0.0]))


# ---------------------------------------------------------------- real processes


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))


def train(hook: Callable[[int, int, nn.Module], None], steps: int, every: int | None) -> str | None:
    """What the check has to say."""
    world = current_world()
    model = network()
    with Pulse(world) as pulse:
        watchdog = Watchdog(pulse)
        check = ReplicaCheck(pulse, dict(model.named_parameters()), every)
        try:
            for step in range(1, steps + 1):
                gradient = torch.full((1,), float(world.rank))
                dist.all_reduce(gradient)
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter += 1e-3 * gradient
                hook(world.rank, step, model)
                check.after_step(step)
            check.finish(steps)
        except (DriftError, RuntimeError) as error:
            return str(watchdog.failed(error) or error).split("\n")[0]
        finally:
            watchdog.close()
        world.barrier()
    return None


def nothing(rank: int, step: int, model: nn.Module) -> None:
    pass


@pytest.mark.parametrize("size", [2, 3])
def test_equal_copies_pass_in_silence(size: int) -> None:
    """For many comparisons."""
    assert together(size, train, nothing, 3_000, 3) == [None] * size


def train_and_fail(hook: Callable[[int, int, nn.Module], None]) -> int:
    message = train(hook, 100_000, 25)
    print(message, flush=True)
    return 1 if message else 0


def flip_on_rank_1(rank: int, step: int, model: nn.Module) -> None:
    time.sleep(0.002)
    if rank == 1 and step == 30:
        flip(model[2].weight, 0)


def test_one_flipped_bit_is_named(tmp_path: Path) -> None:
    """The parameter, the process, and the step of the comparison, while training goes on; all processes end."""
    fates = Crew(tmp_path, 3, train_and_fail, flip_on_rank_1).fates()
    assert [fate.status for fate in fates] == [1, 1, 1]
    for fate in fates:
        assert "after step 50 the copies of the model are not equal: 2.weight on rank 1\n" in fate.output


def flip_on_rank_0(rank: int, step: int, model: nn.Module) -> None:
    time.sleep(0.002)
    if rank == 0 and step == 1:
        flip(model[0].bias, 40)
        flip(model[2].bias, 3)


def test_of_two_copies_neither_is_the_right_one(tmp_path: Path) -> None:
    """Both are named."""
    for fate in Crew(tmp_path, 2, train_and_fail, flip_on_rank_0).fates():
        assert fate.status == 1
        assert (
            "step 25 the copies of the model are not equal: 0.bias, 2.bias between rank 0 and rank 1\n" in fate.output
        )


def flip_at_the_end(rank: int, step: int, model: nn.Module) -> None:
    if rank == 2 and step == 20:
        flip(model[0].weight, 100)


@pytest.mark.parametrize("every", [None, 7])
def test_the_last_comparison_waits_for_what_it_finds(every: int | None) -> None:
    """A run that ends before the next comparison is due."""
    found = together(3, train, flip_at_the_end, 20, every)
    assert found == ["after step 20 the copies of the model are not equal: 0.weight on rank 2"] * 3


def all_differ(rank: int, step: int, model: nn.Module) -> None:
    if step == 1:
        for parameter in model.parameters():
            flip(parameter, rank)


def test_where_all_copies_differ_all_are_named() -> None:
    """There is no majority."""
    names = "0.weight, 0.bias, 2.weight, 2.bias"
    found = together(3, train, all_differ, 1, None)
    assert (
        found
        == [f"after step 1 the copies of the model are not equal: {names} between rank 0 and rank 1 and rank 2"] * 3
    )


def test_one_process_has_nothing_to_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    """And computes nothing."""
    taken: list[Any] = []
    monkeypatch.setattr(ReplicaCheck, "_take", lambda *arguments: taken.append(arguments))
    check = ReplicaCheck(Pulse(World()), dict(network().named_parameters()), 1)
    check.after_step(1)
    check.finish(1)
    assert taken == []
