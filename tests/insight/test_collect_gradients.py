"""Gradients by name, equal to what autograd itself gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flambeau.errors import UsageError
from flambeau.insight import collect_gradients


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))


INPUTS = torch.arange(6.0).reshape(2, 3) / 10


def test_parameters_outputs_and_tensors_are_had_by_name(model: nn.Sequential) -> None:
    """Compared with torch.autograd.grad; a module that is overwritten in place after it included."""
    inputs = INPUTS.clone().requires_grad_()
    hidden = model[0](inputs)
    outputs = model[2](torch.relu(hidden))
    expected = torch.autograd.grad(outputs.square().sum(), [inputs, hidden, outputs, *model.parameters()])
    inputs = INPUTS.clone().requires_grad_()
    with collect_gradients(model, "*.weight", "0", "2", inputs=inputs) as grads:
        model(inputs).square().sum().backward()
    assert grads.keys() == {"inputs", "0", "2", "0.weight", "2.weight"}
    for name, gradient in zip(("inputs", "0", "2", "0.weight"), expected, strict=False):
        assert torch.equal(grads[name], gradient), name
    assert torch.equal(grads["2.weight"], expected[5])


def test_the_gradients_of_several_passes_are_added_up(model: nn.Sequential) -> None:
    """As in `.grad`, of which they are copies: clearing that one leaves them."""
    with collect_gradients(model) as grads:
        for _ in range(3):
            model(INPUTS).sum().backward()
        expected = {name: parameter.grad for name, parameter in model.named_parameters()}
        kept = {name: gradient.clone() for name, gradient in expected.items() if gradient is not None}
        for gradient in expected.values():
            assert gradient is not None
            gradient.zero_()
    assert grads.keys() == kept.keys()
    assert all(torch.allclose(grads[name], kept[name]) for name in kept)


def test_nothing_stays_behind(model: nn.Sequential) -> None:
    """No hook, and no gradient of a later pass, also after an error."""
    with pytest.raises(KeyError), collect_gradients(model, "*") as grads:
        raise KeyError
    model(INPUTS).sum().backward()
    assert grads == {}
    assert all(not module._forward_hooks for module in model.modules())
    assert all(not parameter._backward_hooks for parameter in model.parameters())


def test_outputs_of_several_tensors_have_a_name_each() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Part()

        def forward(self, inputs: Tensor) -> Tensor:
            found = self.part(inputs)
            return (found["double"] + found["pair"][1]).sum()  # type: ignore[no-any-return]

    class Part(nn.Module):
        def forward(self, inputs: Tensor) -> dict[str, Any]:
            return {"double": 2 * inputs, "pair": (inputs.detach(), 3 * inputs)}

    inputs = torch.ones(2, requires_grad=True)
    with collect_gradients(model := Two(), "part", inputs=inputs) as grads:
        model(inputs).backward()
    assert grads.keys() == {"part.double", "part.pair.1", "inputs"}
    assert grads["inputs"].tolist() == [5.0, 5.0]


def test_a_name_that_is_nobody_s_is_refused_with_the_nearest(model: nn.Sequential) -> None:
    with pytest.raises(UsageError, match=r"called '0\.wieght'\n  did you mean '0\.weight'\?"):
        collect_gradients(model, "0.wieght").__enter__()


def test_a_tensor_that_wants_none_is_refused() -> None:
    with pytest.raises(UsageError, match="'inputs' wants no gradient"):
        collect_gradients(inputs=INPUTS).__enter__()
