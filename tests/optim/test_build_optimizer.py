"""Optimizers from configuration: parameter groups, fused kernels, and errors before the run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flambeau.config.sections import GroupSettings, OptimizerSettings
from flambeau.errors import UsageError
from flambeau.optim import build_optimizer


class Net(nn.Module):
    """A backbone with norms, a head tied to the embedding, and a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 9)
        self.head.weight = self.embedding.weight


def names_by_group(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [{names[id(parameter)] for parameter in group["params"]} for group in optimizer.param_groups]


def build(*groups: dict[str, Any], no_decay: bool = False, cls: Any = torch.optim.AdamW, **arguments: Any) -> Any:
    model = Net()
    parsed = OptimizerSettings(groups=[GroupSettings(**group) for group in groups], no_decay=no_decay)
    return model, build_optimizer(model, cls, arguments, parsed)


@settings(max_examples=50, deadline=None)
@given(
    patterns=st.lists(st.sampled_from(["*.bias", "backbone.*", "head.*", "*.weight", "*1*", "*"]), max_size=3),
    no_decay=st.booleans(),
)
def test_every_trainable_parameter_is_in_exactly_one_group(patterns: list[str], no_decay: bool) -> None:
    """Tied ones once, frozen ones never, whatever the patterns."""
    try:
        model, optimizer = build(*({"pattern": pattern, "lr": 0.1} for pattern in patterns), no_decay=no_decay)
    except UsageError as error:
        # An earlier pattern has taken all, or it is not clear which of two is meant.
        assert "takes no parameter" in str(error) or "neither lies within" in str(error)
        return
    members = [name for group in names_by_group(model, optimizer) for name in group]
    assert sorted(members) == sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)


def test_a_group_has_its_own_rate_and_decay_and_the_rest_has_the_optimizers() -> None:
    """What a group does not set comes from the optimizer."""
    model, optimizer = build(
        {"pattern": "backbone.*", "lr": 1e-4}, {"pattern": "*", "weight_decay": 0.3}, lr=1e-2, weight_decay=0.1
    )
    backbone, rest = optimizer.param_groups
    assert (backbone["lr"], backbone["weight_decay"]) == (1e-4, 0.1)
    assert (rest["lr"], rest["weight_decay"]) == (1e-2, 0.3)
    assert names_by_group(model, optimizer)[1] == {"embedding.weight", "head.bias"}


def test_the_first_pattern_that_matches_takes_a_parameter() -> None:
    """Order decides, as in every list of rules."""
    model, optimizer = build({"pattern": "backbone.*.bias", "lr": 0.1}, {"pattern": "backbone.*", "lr": 0.2})
    assert names_by_group(model, optimizer)[0] == {"backbone.0.bias", "backbone.1.bias", "backbone.2.bias"}
    assert names_by_group(model, optimizer)[1] == {"backbone.0.weight", "backbone.1.weight", "backbone.2.weight"}


def test_a_tied_parameter_is_found_under_each_of_its_names() -> None:
    """`head.weight` is the embedding's weight."""
    model, optimizer = build({"pattern": "head.*", "lr": 0.1})
    assert names_by_group(model, optimizer)[0] == {"embedding.weight", "head.bias"}


def test_no_decay_spares_biases_and_norms() -> None:
    """Within each group, parameters of fewer than two dimensions have weight decay 0."""
    model, optimizer = build({"pattern": "backbone.*", "lr": 0.1}, no_decay=True, weight_decay=0.2)
    for group, names in zip(optimizer.param_groups, names_by_group(model, optimizer), strict=True):
        small = {name for name in names if name.endswith("bias") or name.startswith("backbone.1")}
        assert small in (set(), names)
        assert group["weight_decay"] == (0.0 if small else 0.2)
    assert len(optimizer.param_groups) == 4


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [("backbon.*", "backbone.*"), ("backbone.0.wieght", "backbone.0.weight"), ("haed.*", "head.*")],
)
def test_a_pattern_that_matches_nothing_is_an_error_with_the_nearest_names(pattern: str, nearest: str) -> None:
    """It would otherwise train with the wrong rate in silence."""
    with pytest.raises(UsageError) as caught:
        build({"pattern": pattern, "lr": 0.1})
    assert pattern in caught.value.message
    assert caught.value.remedy is not None and nearest in caught.value.remedy


def test_a_group_that_is_left_without_parameters_is_an_error() -> None:
    """Because an earlier group has them, or because they are frozen."""
    with pytest.raises(UsageError, match="earlier group"):
        build({"pattern": "*"}, {"pattern": "head.*", "lr": 0.1})
    with pytest.raises(UsageError, match="frozen"):
        build({"pattern": "frozen.*", "lr": 0.1})


def test_a_weight_decay_that_no_decay_takes_back_is_an_error() -> None:
    """Two settings that contradict each other."""
    with pytest.raises(UsageError, match=r"'\*.bias' applies to nothing"):
        build({"pattern": "*.bias", "weight_decay": 0.1}, no_decay=True)


def test_an_optimizer_that_has_no_weight_decay_is_not_given_one() -> None:
    """torch would keep the entry and never look at it."""
    with pytest.raises(UsageError, match="LBFGS has no weight_decay"):
        build(no_decay=True, cls=torch.optim.LBFGS)


def test_a_model_with_nothing_to_train_is_an_error() -> None:
    """All frozen, or no parameters at all."""
    for model in (nn.Linear(2, 2).requires_grad_(False), nn.ReLU()):
        with pytest.raises(UsageError, match="no trainable parameters"):
            build_optimizer(model, torch.optim.SGD, {}, OptimizerSettings())


def test_what_torch_refuses_is_an_error_of_the_configuration() -> None:
    """The optimizer's own check of its values, without a traceback for the user."""
    with pytest.raises(UsageError, match="Invalid learning rate"):
        build(lr=-1.0)


def test_a_users_own_error_stays_what_it_is() -> None:
    """A bug in a project's optimizer keeps its traceback."""

    class Broken(torch.optim.SGD):
        def __init__(self, params: Any) -> None:
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        build(cls=Broken)


def test_fused_kernels_are_used_where_nothing_speaks_against_them() -> None:
    """Adam and AdamW, unless the user decides; not SGD, whose fused step has faults; not complex parameters."""
    assert build()[1].defaults["fused"] is True
    assert build(cls=torch.optim.Adam)[1].defaults["fused"] is True
    assert build(cls=torch.optim.SGD, momentum=0.9)[1].defaults["fused"] is None
    assert build(fused=False)[1].defaults["fused"] is False
    assert build(foreach=True)[1].defaults["fused"] is None
    assert build(capturable=True)[1].defaults["fused"] is None
    linear = nn.Linear(2, 2, dtype=torch.complex64)
    assert build_optimizer(linear, torch.optim.AdamW, {}, OptimizerSettings()).defaults["fused"] is None
    elsewhere = build_optimizer(nn.Linear(2, 2, device="meta"), torch.optim.AdamW, {}, OptimizerSettings(), "meta")
    assert elsewhere.defaults["fused"] is None


def test_any_optimizer_class_is_taken() -> None:
    """torch's by import path, and a project's own."""
    for cls in (torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adamax, torch.optim.ASGD):
        model, optimizer = build(cls=cls)
        model.head(model.embedding(torch.tensor([1]))).sum().backward()
        optimizer.step()
        assert type(optimizer) is cls
