"""Parameter groups by name, module class and dimensions; what they set, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from flambeau.config.sections import GroupSettings, LayerDecaySettings, OptimizerSettings, SelectionSettings
from flambeau.errors import UsageError
from flambeau.optim import build_optimizer, learning_rates


class Block(nn.Module):
    """A linear layer and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)


class Net(nn.Module):
    """An embedding, two blocks, a norm of another class and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 9)


NORMS = {"blocks.0.norm.weight", "blocks.0.norm.bias", "blocks.1.norm.weight", "blocks.1.norm.bias"}


def build(
    *groups: dict[str, Any], model: nn.Module | None = None, cls: Any = torch.optim.AdamW, **options: Any
) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = model or Net()
    names = OptimizerSettings.__dataclass_fields__
    settings = {key: options.pop(key) for key in list(options) if key in names}
    batch_size = options.pop("batch_size", None)
    parsed = OptimizerSettings(groups=[GroupSettings(**group) for group in groups], **settings)
    return model, build_optimizer(model, cls, options, parsed, batch_size=batch_size)


def group_of(model: nn.Module, optimizer: torch.optim.Optimizer, name: str) -> dict[str, Any]:
    """The group that a parameter is in."""
    parameter = model.get_parameter(name)
    return next(group for group in optimizer.param_groups if any(own is parameter for own in group["params"]))


def members(model: nn.Module, group: dict[str, Any]) -> set[str]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter] for parameter in group["params"]}


class TestSelection:
    @pytest.mark.parametrize(
        ("selection", "expected"),
        [
            ({"type": "LayerNorm"}, NORMS),
            ({"type": "torch.nn.LayerNorm"}, NORMS),
            ({"type": "torch.nn.modules.normalization.LayerNorm"}, NORMS),
            ({"type": ["LayerNorm", "BatchNorm1d"]}, NORMS | {"norm.weight", "norm.bias"}),
            ({"type": "_BatchNorm"}, {"norm.weight", "norm.bias"}),
            ({"ndim": 2, "pattern": "blocks.*"}, {"blocks.0.linear.weight", "blocks.1.linear.weight"}),
            ({"type": "Block", "pattern": ["*.1.*.bias"]}, {"blocks.1.linear.bias", "blocks.1.norm.bias"}),
            ({"type": "Embedding", "ndim": [1, 2]}, {"embedding.weight"}),
        ],
    )
    def test_all_keys_have_to_fit(self, selection: dict[str, Any], expected: set[str]) -> None:
        """Name, class (by its name, import path or a base's) and number of dimensions, alone and together."""
        model, optimizer = build({**selection, "lr": 0.1})
        assert members(model, optimizer.param_groups[0]) == expected

    @pytest.mark.parametrize(
        ("selection", "message", "remedy"),
        [
            ({"type": "LayerNrom"}, "the type LayerNrom matches no parameter", "LayerNorm"),
            ({"ndim": 4}, "ndim 4 matches no parameter", "1, 2"),
            ({"pattern": "blcks.*"}, "the pattern 'blcks.*' matches no", "blocks.*"),
            ({"pattern": "head.*", "type": "LayerNorm"}, "'head.*' and the type LayerNorm matches no", "fit together"),
            ({}, "nothing says which parameters", "give pattern, type or ndim"),
        ],
    )
    def test_an_empty_group_is_an_error_that_names_it(
        self, selection: dict[str, Any], message: str, remedy: str
    ) -> None:
        """With what there is in the model."""
        with pytest.raises(UsageError) as caught:
            build({**selection, "lr": 0.1})
        assert message in caught.value.message
        assert remedy in (caught.value.remedy or "")

    def test_an_ambiguous_group_is_an_error_that_names_both(self) -> None:
        """A norm within the backbone would silently have the settings of one of the two groups only."""
        norms, blocks = {"type": "LayerNorm", "weight_decay": 0.0}, {"pattern": "blocks.1.*", "lr_factor": 0.1}
        with pytest.raises(UsageError, match=r"type LayerNorm and the pattern 'blocks.1.\*' both take 'blocks.1.norm"):
            build(norms, blocks)

    def test_a_group_for_what_two_share_makes_them_clear(self) -> None:
        """It comes first, and lies within both."""
        norms, blocks = {"type": "LayerNorm", "weight_decay": 0.0}, {"pattern": "blocks.1.*", "lr_factor": 0.1}
        model, optimizer = build({**norms, **blocks, "name": "both"}, norms, blocks, lr=1.0, weight_decay=0.5)
        both, norm, block, rest = optimizer.param_groups
        assert members(model, both) == {"blocks.1.norm.weight", "blocks.1.norm.bias"}
        assert (both["lr"], both["weight_decay"]) == (0.1, 0.0)
        assert (norm["lr"], norm["weight_decay"], block["lr"], block["weight_decay"]) == (1.0, 0.0, 0.1, 0.5)
        assert (rest["lr"], rest["weight_decay"]) == (1.0, 0.5)

    def test_two_groups_of_one_name_are_an_error(self) -> None:
        """One would hide the other in the log."""
        with pytest.raises(UsageError, match="two groups are called 'mine'"):
            build({"pattern": "head.*", "name": "mine"}, {"pattern": "embedding.*", "name": "mine"})


class TestValues:
    def test_a_factor_is_of_the_optimizers_own_rate(self) -> None:
        """The one that is given, or the optimizer's default."""
        model, optimizer = build({"pattern": "head.*", "lr_factor": 10}, lr=0.02)
        assert group_of(model, optimizer, "head.bias")["lr"] == pytest.approx(0.2)
        model, optimizer = build({"pattern": "head.*", "lr_factor": 10})
        assert group_of(model, optimizer, "head.bias")["lr"] == pytest.approx(10 * 1e-3)

    def test_a_rate_and_a_factor_are_one_too_many(self) -> None:
        """Which of the two is meant cannot be known."""
        with pytest.raises(UsageError, match="both lr and lr_factor"):
            build({"pattern": "head.*", "lr_factor": 10, "lr": 0.1})

    def test_any_other_argument_of_the_optimizer_may_differ(self) -> None:
        """A list becomes the tuple that torch wants; what the optimizer does not take is an error."""
        model, optimizer = build({"pattern": "head.*", "arguments": {"betas": [0.5, 0.9]}})
        assert group_of(model, optimizer, "head.bias")["betas"] == (0.5, 0.9)
        assert group_of(model, optimizer, "embedding.weight")["betas"] == (0.9, 0.999)
        with pytest.raises(UsageError, match="AdamW has no momentum"):
            build({"pattern": "head.*", "arguments": {"momentum": 0.9}})
        with pytest.raises(UsageError, match="has lr among its arguments"):
            build({"pattern": "head.*", "arguments": {"lr": 0.9}})

    def test_no_decay_takes_rules_of_ones_own(self) -> None:
        """Patterns of names and selections; what they do not name keeps its decay, biases too."""
        rules = ["*.norm.*", SelectionSettings(type="Embedding")]
        model, optimizer = build(no_decay=rules, weight_decay=0.3)
        decays = {name: group_of(model, optimizer, name)["weight_decay"] for name, _ in model.named_parameters()}
        spared = {name for name, decay in decays.items() if decay == 0}
        assert spared == NORMS | {"embedding.weight"}
        assert set(decays.values()) == {0.0, 0.3}
        with pytest.raises(UsageError, match=r"optimizer\.no_decay: the pattern 'nrom' matches no parameter"):
            build(no_decay=["nrom"])

    def test_the_names_are_in_the_log(self) -> None:
        """`lr/<name>`, by what chooses the group if it has none."""
        _, optimizer = build(
            {"pattern": "head.*", "name": "head", "lr": 0.1},
            {"type": "LayerNorm", "lr": 0.2},
            {"pattern": "blocks.*", "ndim": 2, "lr": 0.3},
            lr=0.4,
            no_decay=True,
        )
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        rates = learning_rates(optimizer)
        assert rates == {"lr": 0.4, "lr/head": 0.1, "lr/LayerNorm": 0.2, "lr/blocks.*,ndim=2": 0.3}


class WithGroups(Net):
    """A model that knows how its head is to be trained."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"pattern": "head.*", "lr_factor": 10, "weight_decay": 0.0, "name": "head"}]


class TestTheModelsOwnGroups:
    def test_they_stand_behind_the_configurations(self) -> None:
        """What a configuration says of the same parameters wins."""
        model, optimizer = build(model=WithGroups(), lr=0.01)
        head = group_of(model, optimizer, "head.weight")
        assert (head["name"], head["lr"], head["weight_decay"]) == ("head", 0.1, 0.0)
        model, optimizer = build({"pattern": "*.bias", "lr": 0.5}, model=WithGroups(), lr=0.01)
        assert group_of(model, optimizer, "head.bias")["lr"] == 0.5
        assert group_of(model, optimizer, "head.weight")["lr"] == 0.1

    @pytest.mark.parametrize("given", [["head.*"], [{"patern": "head.*"}], [{"pattern": "haed.*"}]])
    def test_what_it_gives_wrong_is_an_error_that_names_the_method(self, given: Any) -> None:
        """No mapping, an unknown key, or a pattern of nothing."""
        model = Net()
        model.parameter_groups = lambda: given  # type: ignore[assignment]
        with pytest.raises(UsageError, match=r"Net.parameter_groups\(\)"):
            build(model=model)


class TestLayerDecay:
    def test_the_rate_falls_from_the_output_to_the_input(self) -> None:
        """BEiT's factors: the head 1, the last of L blocks `factor`, the embedding `factor ** (L + 1)`."""
        decay = LayerDecaySettings(factor=0.5, blocks="blocks.*")
        model, optimizer = build({"pattern": "*.linear.bias", "lr": 4.0}, layer_decay=decay, lr=1.0, no_decay=True)
        rates = {name: group_of(model, optimizer, name)["lr"] for name, _ in model.named_parameters()}
        assert rates["embedding.weight"] == 0.125
        assert rates["blocks.0.linear.weight"] == rates["blocks.0.norm.bias"] == 0.25
        assert rates["blocks.1.linear.weight"] == 0.5
        assert rates["norm.weight"] == rates["head.weight"] == 1.0
        assert (rates["blocks.0.linear.bias"], rates["blocks.1.linear.bias"]) == (1.0, 2.0)

    def test_blocks_that_share_a_parameter_are_an_error(self) -> None:
        """It has no depth."""
        model = Net()
        model.blocks[1].linear = model.blocks[0].linear  # type: ignore[union-attr]
        with pytest.raises(UsageError, match=r"'blocks\.0' and 'blocks\.1', which share"):
            build(model=model, layer_decay=LayerDecaySettings(factor=0.5, blocks="blocks.*"))

    def test_a_pattern_of_no_block_is_an_error(self) -> None:
        """With the lists of modules that there are."""
        with pytest.raises(UsageError, match=r"layer.* matches no module") as caught:
            build(layer_decay=LayerDecaySettings(factor=0.5, blocks="layers.?"))
        assert "blocks.*" in (caught.value.remedy or "")


class TestScaling:
    @pytest.mark.parametrize(("rule", "scale"), [("linear", 4.0), ("sqrt", 2.0)])
    def test_rates_grow_with_the_batch(self, rule: Any, scale: float) -> None:
        """The optimizer's own, its default, and those of groups; what is a factor is not scaled twice."""
        options: dict[str, Any] = {"lr_reference_batch": 256, "lr_scaling": rule, "batch_size": 1024}
        groups = ({"pattern": "head.*", "lr": 0.5}, {"pattern": "embedding.*", "lr_factor": 3})
        model, optimizer = build(*groups, lr=0.1, **options)
        rates = [group_of(model, optimizer, f"{name}.weight")["lr"] for name in ("head", "embedding", "norm")]
        assert rates == pytest.approx([0.5 * scale, 0.3 * scale, 0.1 * scale])
        model, optimizer = build(**options)
        assert group_of(model, optimizer, "norm.weight")["lr"] == pytest.approx(1e-3 * scale)
