"""Optimizers of other libraries by their import path: checked, scheduled, saved and resumed like torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.projects import InProcess
from support.states import assert_same_runs

from flambeau.checkpoint.tensor_classes import MARK, unwrapped, wrapped
from flambeau.errors import CheckpointError

OPTIMIZER = '''

import torch


class Halves(torch.Tensor):
    """A tensor kept in two, as low-bit optimizers keep codes and scales."""

    @staticmethod
    def __new__(cls, codes, scale, rounds):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes, scale, rounds):
        self.codes, self.scale, self.rounds = codes, scale, rounds

    def __tensor_flatten__(self):
        return ["codes", "scale"], [self.rounds, torch.float32]

    @classmethod
    def __tensor_unflatten__(cls, parts, context, size, stride):
        return cls(parts["codes"], parts["scale"], context[0])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default or func is torch.ops.aten.detach.default:
            own = args[0]
            return cls(own.codes.clone(), own.scale.clone(), own.rounds)
        raise NotImplementedError(str(func))


class Coded(torch.optim.Optimizer):
    """Momentum in 8 bits, its rate in a tensor that must be filled and not replaced, as torchao has it."""

    def __init__(self, params, lr: float = 0.1, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def add_param_group(self, group):
        super().add_param_group(group)
        own = self.param_groups[-1]
        if not isinstance(own["lr"], torch.Tensor):
            own["lr"] = torch.tensor(own["lr"], dtype=torch.float32)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert isinstance(group["lr"], torch.Tensor)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                old = state.get("momentum")
                value = parameter.grad + (0.9 * old.codes.float() * old.scale if old is not None else 0)
                scale = value.abs().max().clamp(min=1e-12) / 127
                state["momentum"] = Halves((value / scale).round().to(torch.int8), scale, 8)
                parameter.sub_(value * group["lr"])
'''


@pytest.fixture
def coded(flambeau: InProcess) -> tuple[str, Any]:
    """A setting that names the optimizer above, in the small project."""
    parts = next(flambeau.project.root.glob("parts_*.py"))
    parts.write_text(parts.read_text() + OPTIMIZER)
    return f"optimizer={{name: {parts.stem}.Coded, lr: 0.01}}", parts.stem


def resumes(flambeau: InProcess, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """A run left in the middle and resumed has the bits of one that was not."""
    flambeau("train", "tiny", *options, "--run-dir", "whole")
    monkeypatch.setenv("PREEMPT_AT", "20")
    flambeau("train", "tiny", *options, "--run-dir", "run", expect=75)
    monkeypatch.delenv("PREEMPT_AT")
    flambeau("resume", "run")
    assert_same_runs(flambeau.project.root / "whole", flambeau.project.root / "run")


def test_state_in_tensors_of_another_class_is_saved_and_taken_up(
    flambeau: InProcess, monkeypatch: pytest.MonkeyPatch, coded: tuple[str, Any]
) -> None:
    """To the same bits; the rate stays the tensor that it is."""
    resumes(flambeau, monkeypatch, coded[0])


def test_a_tensor_of_another_class_goes_through_plain_ones(flambeau: InProcess, coded: tuple[str, Any]) -> None:
    """With its parts and settings, wherever it lies; a class that nobody has imported is refused."""
    flambeau("train", "tiny", coded[0], "trainer.debug=one_batch", "--run-dir", "run")
    module = __import__(coded[1])
    tensor = module.Halves(torch.tensor([3, -4], dtype=torch.int8), torch.tensor(0.5), 8)
    plain = unwrapped({"state": [{"momentum": tensor, "step": 3}]})
    parts = plain["state"][0]["momentum"]["parts"]
    assert all(type(part) is torch.Tensor for part in parts.values())
    again = wrapped(plain)["state"][0]["momentum"]
    assert type(again) is module.Halves
    assert (again.codes.tolist(), again.scale.item(), again.rounds) == ([3, -4], 0.5, 8)
    for path in ("subprocess.Popen", "os.system", "nowhere.Tensor", "torch.nn.Linear"):
        with pytest.raises(CheckpointError, match="which this optimizer does not use"):
            wrapped({MARK: path, "parts": {}, "settings": []})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchao.optim.AdamW8bit", "bitsandbytes.optim.AdamW8bit"])
def test_an_8_bit_optimizer_trains_and_resumes(flambeau: InProcess, name: str) -> None:
    """Named by its import path, on layers that are large enough for 8 bits. torchao's compiles its step."""
    pytest.importorskip(name.partition(".")[0], reason="no dependency of Flambeau")
    options = (f"optimizer={{name: {name}, lr: 0.001}}", "trainer.epochs=2", "trainer.log_every=20")
    flambeau("train", "mlp", *options, "--run-dir", "whole")
    flambeau("train", "mlp", *options, "trainer.stop_after_epochs=1", "--run-dir", "run")
    flambeau("resume", "run", "trainer.stop_after_epochs=null")
    assert_same_runs(flambeau.project.root / "whole", flambeau.project.root / "run")


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 has it first")
def test_muon_takes_matrices_and_says_so() -> None:
    """Groups that leave it a bias are an error of the configuration, not a traceback."""
    from torch import nn

    from flambeau.config.sections import OptimizerSettings
    from flambeau.errors import UsageError
    from flambeau.optim import build_optimizer

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(UsageError, match="optimizer: Muon only supports 2D"):
        build_optimizer(model, torch.optim.Muon, {}, OptimizerSettings())
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    optimizer = build_optimizer(model, torch.optim.Muon, {"lr": 0.02}, OptimizerSettings(), among=matrices)
    assert [parameter for group in optimizer.param_groups for parameter in group["params"]] == matrices
