"""Batch norm over several processes gives what one process gives on the whole batch."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import batch_norm_cases as cases
import pytest
import torch
from support.processes import together
from torch import nn

from flambeau.distributed.batch_norm import SyncBatchNorm, SyncBatchNorm2d, convert, local_norms, unsynced
from flambeau.errors import UsageError


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The results of all cases from each of several real processes."""
    return together(request.param, cases.in_one_of_several)


@pytest.mark.parametrize("name", cases.CASES)
def test_several_processes_normalise_as_one_with_the_whole_batch(ranks: list[dict[str, Any]], name: str) -> None:
    case = cases.CASES[name]
    alone = cases.run(case, list(case.sizes[: len(ranks)]), None)

    def close(found: Any, expected: Any, tolerance: float = case.tolerance) -> None:
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)

    for key in ("outputs", "inputs"):
        for step in range(2):
            close(torch.cat([rank[name][key][step] for rank in ranks]), alone[key][step])
    for rank in ranks:
        close(rank[name]["parameters"], alone["parameters"], 4 * case.tolerance)
        # Statistics are taken in float32 even of inputs in half precision.
        close(rank[name]["buffers"], alone["buffers"], case.statistics)


@pytest.mark.slow
def test_compiled_models_normalise_over_all_processes_too() -> None:
    for plain, compiled in together(2, cases.compiled):
        torch.testing.assert_close(compiled, plain, rtol=1e-10, atol=1e-10)


def test_one_process_and_evaluation_do_exactly_what_batch_norm_does() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    converted = copy.deepcopy(plain)
    convert(converted)
    inputs = torch.randn(5, 3, 2, 2)
    assert torch.equal(plain(inputs), converted(inputs))
    assert torch.equal(plain.eval()(inputs), converted.eval()(inputs))
    assert torch.equal(plain[1].running_var, converted[1].running_var)


def test_converting_keeps_the_modules_with_all_that_belongs_to_them() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm3d(4)), nn.InstanceNorm2d(3))
    model[1][0].eval()
    model[0].weight.requires_grad_(False)
    calls: list[int] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    modules, tensors = list(model.modules()), [*model.parameters(), *model.buffers()]
    names = list(model.state_dict())

    convert(model)
    assert local_norms(model) == []

    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert all(a is b for a, b in zip(tensors, [*model.parameters(), *model.buffers()], strict=True))
    assert names == list(model.state_dict())
    assert all(isinstance(module, SyncBatchNorm) for module in (model[0], *model[1]))
    assert type(model[2]) is nn.InstanceNorm2d
    assert isinstance(model[0], nn.BatchNorm2d) and not model[1][0].training and not model[0].weight.requires_grad
    model[0](torch.randn(2, 3, 2, 2))
    assert calls == [1]
    assert isinstance(pickle.loads(pickle.dumps(model[1][1])), SyncBatchNorm)
    with pytest.raises(ValueError, match="4D"):
        SyncBatchNorm2d(3)(torch.randn(2, 3))


def test_batch_norms_that_cannot_be_converted_are_named() -> None:
    class Own(nn.BatchNorm1d):
        pass

    model = nn.ModuleDict({"own": Own(3), "plain": nn.BatchNorm1d(3)})
    convert(model)
    assert local_norms(model) == ["own"]
    with pytest.raises(UsageError, match="'norm' is a LazyBatchNorm1d"):
        convert(nn.ModuleDict({"norm": nn.LazyBatchNorm1d()}))


def test_a_trial_without_synchronisation_ends_with_it() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    convert(model)
    with pytest.raises(RuntimeError, match="the trial's"), unsynced(model):
        assert not model[0].synced
        raise RuntimeError("the trial's")
    assert model[0].synced
