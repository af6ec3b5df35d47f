"""The direct step: torch's own, bit for bit, whatever happens in between."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from flambeau.optim import direct_step
from flambeau.optim.direct import _DirectStep

MakeOptimizer = Callable[[list[Any]], Optimizer]

OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "sgd fused": lambda groups: torch.optim.SGD(groups, lr=0.1, weight_decay=0.01, fused=True),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.01),
    "nesterov": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "nesterov fused": lambda groups: torch.optim.SGD(
        groups, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, fused=True
    ),
    "dampening fused": lambda groups: torch.optim.SGD(
        groups, lr=0.1, momentum=0.9, dampening=0.1, maximize=True, fused=True
    ),
    "adam": lambda groups: torch.optim.Adam(groups, weight_decay=0.1),
    "adam fused": lambda groups: torch.optim.Adam(groups, weight_decay=0.1, fused=True),
    "adam maximize fused": lambda groups: torch.optim.Adam(groups, maximize=True, eps=1e-3, fused=True),
    "adam amsgrad fused": lambda groups: torch.optim.Adam(groups, amsgrad=True, fused=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, weight_decay=0.1),
    "adamw foreach": lambda groups: torch.optim.AdamW(groups, weight_decay=0.1, foreach=True),
    "adamw fused": lambda groups: torch.optim.AdamW(groups, betas=(0.8, 0.95), fused=True),
    "adagrad": lambda groups: torch.optim.Adagrad(groups),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, momentum=0.9, centered=True),
    "nadam": lambda groups: torch.optim.NAdam(groups),
    "adadelta": lambda groups: torch.optim.Adadelta(groups),
}
FUSED = [name for name in OPTIMIZERS if "fused" in name]
ALL_AT_ONCE = ("nesterov fused", "dampening fused")
"""torch's fused SGD with momentum fails if a parameter gets its first gradient after others have had theirs."""


class Net(nn.Module):
    """Tied, frozen, unused and double-precision parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.sometimes = nn.Linear(6, 3)
        self.never = nn.Linear(6, 3)
        self.wide = nn.Linear(6, 3).double()

    def forward(self, x: Tensor, sometimes: bool) -> Tensor:
        x = self.frozen(torch.tanh(self.second(torch.relu(self.first(x)))))
        out = self.wide(x.double())
        if hasattr(self, "added"):
            out = out + self.added
        return out + self.sometimes(x) if sometimes else out


class Plain(Optimizer):
    """Gradient descent as a project may write it."""

    def __init__(self, groups: Any) -> None:
        super().__init__(groups, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=group["lr"])


class Pair:
    """The same net and optimizer twice: one steps as torch does, the other directly."""

    def __init__(self, name: str | MakeOptimizer) -> None:
        make = OPTIMIZERS[name] if isinstance(name, str) else name
        self.all_at_once = name in ALL_AT_ONCE
        torch.manual_seed(0)
        self.nets = [Net()]
        self.nets.append(copy.deepcopy(self.nets[0]))
        self.optimizers: list[Optimizer] = []
        for net in self.nets:
            members = list(net.parameters())
            self.optimizers.append(make([{"params": members[:2]}, {"params": members[2:], "lr": 0.02}]))
        self.usual, self.own = self.optimizers
        self.direct = direct_step(self.own)
        self.generator = torch.Generator().manual_seed(1)

    def steps(self, count: int, *, usual: Callable[[], Any] | None = None) -> None:
        for _ in range(count):
            inputs = torch.randn(4, 6, generator=self.generator)
            sometimes = self.all_at_once or bool(torch.rand((), generator=self.generator) < 0.7)
            for net, optimizer in zip(self.nets, self.optimizers, strict=True):
                optimizer.zero_grad()
                net(inputs, sometimes).square().sum().backward()
            (usual or self.usual.step)()
            self.direct()
            self.check()

    def each(self, change: Callable[[Optimizer], Any]) -> None:
        for optimizer in self.optimizers:
            change(optimizer)

    def check(self) -> None:
        for one, other in zip(self.nets[0].parameters(), self.nets[1].parameters(), strict=True):
            assert torch.equal(one, other)
        same(self.usual.state_dict(), self.own.state_dict())


def same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    else:
        assert one == other


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_bit_is_torchs(name: str) -> None:
    """Over many steps: weights and state, with two groups, two dtypes, and gradients that come and go."""
    pair = Pair(name)
    assert isinstance(pair.direct, _DirectStep)
    pair.steps(40)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_settings_may_change_at_any_step(name: str) -> None:
    """Learning rate and weight decay are read from the groups each time."""
    pair = Pair(name)
    for step in range(20):
        for optimizer in pair.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (step + 1)
                if "weight_decay" in group:
                    group["weight_decay"] = 0.01 * (step % 3)
        pair.steps(1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_may_be_loaded_in_between(name: str) -> None:
    """Back to an earlier state, and on from there; and into a new optimizer."""
    pair = Pair(name)
    pair.steps(5)
    saved = [copy.deepcopy(optimizer.state_dict()) for optimizer in pair.optimizers]
    pair.steps(5)
    for optimizer, state in zip(pair.optimizers, saved, strict=True):
        optimizer.load_state_dict(state)
    pair.steps(5)
    pair.usual.load_state_dict(copy.deepcopy(pair.own.state_dict()))
    pair.steps(5)


@pytest.mark.parametrize("name", FUSED)
def test_what_is_done_to_the_optimizer_in_between_is_seen(name: str) -> None:
    """State emptied or replaced, a group added, a parameter taken out, other settings: as with torch's step."""
    pair = Pair(name)
    pair.steps(3)
    pair.each(lambda optimizer: optimizer.state.clear())
    pair.steps(3)
    pair.each(lambda optimizer: [state.clear() for state in optimizer.state.values()])
    pair.steps(3)
    pair.each(
        lambda optimizer: [
            state.update({key: value * 0.5 if value.ndim else value + 7 for key, value in state.items()})
            for state in optimizer.state.values()
        ]
    )
    pair.steps(3)
    for net in pair.nets:
        net.frozen.requires_grad_(not pair.all_at_once)
    pair.steps(2)
    for optimizer, net in zip(pair.optimizers, pair.nets, strict=True):
        net.added = nn.Parameter(torch.ones(3))
        optimizer.add_param_group({"params": [net.added]})
    pair.steps(2)
    assert not torch.equal(pair.nets[1].added, torch.ones(3))
    outside = [optimizer.param_groups[1]["params"].pop() for optimizer in pair.optimizers]
    before = outside[1].detach().clone()
    for net in pair.nets:  # (state_dict knows no parameter outside of the groups, so weights alone are compared)
        net(torch.ones(1, 6), True).sum().backward()
    pair.usual.step()
    pair.direct()
    assert torch.equal(outside[1], before)
    for optimizer, parameter in zip(pair.optimizers, outside, strict=True):
        optimizer.state.pop(parameter, None)
    pair.steps(2)
    pair.each(lambda optimizer: optimizer.param_groups[0].update(fused=False, foreach=False))
    pair.steps(2)
    pair.each(lambda optimizer: optimizer.param_groups[0].update(lr=torch.tensor(0.05)))
    pair.steps(2)


@pytest.mark.parametrize("name", ["sgd fused", "nesterov fused"])
def test_momentum_may_be_switched_on_and_off(name: str) -> None:
    """The buffers are made when they are first needed."""
    pair = Pair(name)
    for momentum in (0.0, 0.5, 0.0, 0.9):
        pair.each(lambda optimizer, m=momentum: optimizer.param_groups[0].update(momentum=m, nesterov=m > 0))
        pair.steps(3)


@pytest.mark.parametrize("name", ["adamw fused", "adam", "nesterov fused"])
def test_usual_and_direct_steps_may_alternate(name: str) -> None:
    """Either leaves the optimizer in a state that the other goes on from."""
    pair = Pair(name)
    for _ in range(4):
        pair.steps(2)
        direct, pair.direct = pair.direct, pair.own.step  # type: ignore[assignment]
        pair.steps(2)
        pair.direct = direct


def test_fused_steps_stay_on_the_direct_path() -> None:
    """Once planned, torch's own code is not entered again until something changes."""
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(3)]
    optimizer = torch.optim.AdamW(parameters, fused=True)
    direct = direct_step(optimizer)
    assert isinstance(direct, _DirectStep)
    entered: list[Optimizer] = []
    bare = direct._bare
    direct._bare = lambda optimizer: (entered.append(optimizer), bare(optimizer))
    for parameter in parameters[:2]:
        parameter.grad = torch.ones(3)
    for _ in range(5):
        direct()
    assert len(entered) == 1
    parameters[2].grad = torch.ones(3)
    for _ in range(5):
        direct()
    assert len(entered) == 2


def test_gradients_are_not_kept_alive() -> None:
    """What a step has used is freed when the gradients are cleared."""
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    step = direct_step(optimizer)
    for _ in range(3):
        parameter.grad = torch.ones(3)
        step()
    reference = weakref.ref(parameter.grad)
    optimizer.zero_grad()
    assert parameter.grad is None
    assert reference() is None


HOOKS: dict[str, Callable[[Optimizer, Callable[..., None]], Any]] = {
    "before": lambda optimizer, hook: optimizer.register_step_pre_hook(hook),
    "after": lambda optimizer, hook: optimizer.register_step_post_hook(hook),
    "before all": lambda _, hook: register_optimizer_step_pre_hook(hook),
    "after all": lambda _, hook: register_optimizer_step_post_hook(hook),
}


@pytest.mark.parametrize("when", HOOKS)
def test_a_hook_that_is_registered_later_is_called(when: str) -> None:
    """From the next step on, and no longer once removed; the update is the same."""
    pair = Pair("adamw fused")
    pair.steps(2)
    calls: list[Optimizer] = []
    handle = HOOKS[when](pair.own, lambda optimizer, *_: calls.append(optimizer))
    pair.steps(1)
    handle.remove()
    assert pair.own in calls
    calls.clear()
    pair.steps(1)
    assert not calls


@pytest.mark.parametrize("own", [False, True])
def test_a_step_that_is_wrapped_later_is_called(own: bool) -> None:
    """As torch's learning rate schedulers do with an instance; of torch's optimizers and of others."""
    pair = Pair(Plain if own else "adamw fused")
    pair.steps(2)
    schedulers = [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5) for optimizer in pair.optimizers]
    for _ in range(4):
        pair.steps(1)
        for scheduler in schedulers:
            scheduler.step()
    assert pair.own._opt_called  # type: ignore[attr-defined]  # the schedulers' wrapper has seen it
    assert pair.own.param_groups[1]["lr"] == 0.02 * 0.25


def test_a_class_whose_step_is_replaced_later_is_asked_for_its_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As libraries do that instrument torch."""
    pair = Pair("adamw fused")
    pair.steps(2)
    calls: list[Optimizer] = []
    usual = torch.optim.AdamW.step

    def step(optimizer: Optimizer, closure: Any = None) -> Any:
        calls.append(optimizer)
        return usual(optimizer, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    pair.steps(1)
    assert pair.own in calls


def test_a_gradient_scaler_that_steps_through_it_is_obeyed() -> None:
    """`grad_scale` on the optimizer scales the gradients, and `found_inf` calls the update off."""
    for attributes in ({"grad_scale": 4.0, "found_inf": 0.0}, {"grad_scale": 4.0}, {"found_inf": 1.0}):
        pair = Pair("adamw fused")
        pair.steps(2)
        before = pair.nets[1].first.weight.detach().clone()
        for name, value in attributes.items():
            for optimizer in pair.optimizers:
                setattr(optimizer, name, torch.tensor(value))
        pair.steps(4)
        called_off = attributes.get("found_inf") == 1
        assert torch.equal(before, pair.nets[1].first.weight) is called_off


def test_a_subclass_with_its_own_step_is_called_as_it_is() -> None:
    """Whatever it does is not ours to leave out; one that changes anything else runs torch's code."""

    class Halved(torch.optim.AdamW):
        def step(self, closure: Any = None) -> None:
            super().step(closure)
            with torch.no_grad():
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter.mul_(0.5)

    class Doubled(torch.optim.AdamW):
        def _init_group(self, group: Any, params: Any, grads: Any, *rest: Any) -> Any:
            result = super()._init_group(group, params, grads, *rest)
            grads[:] = [grad * 2 for grad in grads]
            return result

    for make in (lambda groups: Halved(groups, fused=True), lambda groups: Doubled(groups, fused=True), Plain):
        Pair(make).steps(5)


def test_sparse_gradients_are_left_to_torch() -> None:
    """SGD takes them, Adam says that it does not."""
    weights = [nn.Parameter(torch.ones(4, 2)) for _ in range(2)]
    usual, own = (torch.optim.SGD([weight], lr=0.1) for weight in weights)
    step = direct_step(own)
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.sparse_coo_tensor([[1]], [[1.0, 2.0]], (4, 2), check_invariants=True)
        usual.step()
        step()
    assert torch.equal(*weights)

    adam = torch.optim.AdamW([weights[0]], fused=True)
    step = direct_step(adam)
    for _ in range(2):
        weights[0].grad = torch.ones(4, 2)
        step()
    weights[0].grad = torch.sparse_coo_tensor([[1]], [[1.0, 2.0]], (4, 2), check_invariants=True)
    with pytest.raises(RuntimeError, match="sparse"):
        step()


def test_the_profiler_sees_the_step() -> None:
    """Its mark is in the wrapper, so the wrapper runs while a profiler does."""
    pair = Pair("adamw fused")
    pair.steps(2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        pair.direct()
    pair.usual.step()
    assert any("Optimizer.step#AdamW.step" in event.key for event in profile.key_averages())
    pair.steps(2)


def test_a_differentiable_optimizer_keeps_its_graph() -> None:
    """The step stays part of what can be differentiated."""
    rate = torch.tensor(0.1, requires_grad=True)
    start = torch.ones(2, requires_grad=True)
    weight = start.clone()
    optimizer = torch.optim.SGD([weight], lr=rate, differentiable=True)
    weight.grad = torch.full((2,), 2.0)
    direct_step(optimizer)()
    (gradient,) = torch.autograd.grad(weight.sum(), rate)
    assert gradient == -4


def test_the_gradient_mode_is_as_before() -> None:
    """After a step, and after one that failed."""
    pair = Pair("adam")
    pair.steps(2)
    assert torch.is_grad_enabled()
    pair.nets[1].first.weight.grad = torch.sparse_coo_tensor([[1]], [[1.0] * 6], (6, 6), check_invariants=True)
    with pytest.raises(RuntimeError):
        pair.direct()
    assert torch.is_grad_enabled()
    with torch.no_grad():
        pair.nets[1].first.weight.grad = None
        pair.direct()
        assert not torch.is_grad_enabled()


def test_a_copy_of_the_optimizer_is_whole() -> None:
    """Step counts that lie in one block of memory are still one tensor each, to copy and to change."""
    pair = Pair("adamw fused")
    pair.steps(4)
    state = copy.deepcopy(pair.own.state_dict())
    first, second, *_ = state["state"].values()
    first["step"] += 10
    assert first["step"] == 14
    assert second["step"] == 4
    pair.check()


def run_python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_an_optimizers_life_does_not_import_dynamo() -> None:
    """Made, stepped, cleared, saved and loaded, fused or not; the import costs about a second of CPU."""
    output = run_python("""
        import sys, torch
        from flambeau.config.sections import OptimizerSettings
        from flambeau.optim import build_optimizer, direct_step
        model = torch.nn.Linear(4, 2)
        for cls, fused in ((torch.optim.AdamW, True), (torch.optim.Adam, False), (torch.optim.SGD, False)):
            optimizer = build_optimizer(model, cls, {"fused": fused}, OptimizerSettings())
            step = direct_step(optimizer)
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.randn(3, 4)).sum().backward()
                step()
            optimizer.load_state_dict(optimizer.state_dict())
            optimizer.zero_grad()
        print("torch._dynamo" in sys.modules)
    """)
    assert output.strip() == "False"


def test_once_dynamo_is_imported_its_own_wrappers_are_back() -> None:
    """The stand-ins make way: the methods are again hidden from torch.compile, and still work."""
    output = run_python("""
        import torch
        from torch.optim import Optimizer
        from flambeau.optim import defer_dynamo_import
        defer_dynamo_import()
        defer_dynamo_import()
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
        bare = Optimizer.state_dict.__wrapped__
        before = getattr(bare, "__dynamo_disable")
        import torch._dynamo
        state = optimizer.state_dict()
        after = getattr(bare, "__dynamo_disable")
        print(before is not after, getattr(after, "_torchdynamo_disable", False), state["param_groups"][0]["lr"])
    """)
    assert output.split() == ["True", "True", "0.1"]
