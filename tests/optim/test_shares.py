"""Which of several optimizers has which parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flambeau.errors import UsageError
from flambeau.optim.shares import shares_of


class Net(nn.Module):
    """Two modules, and a parameter beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
        self.decoder = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(()))


def names(net: Net, patterns: dict[str, list[str]]) -> dict[str, list[str]]:
    known = {parameter: name for name, parameter in net.named_parameters()}
    return {label: [known[parameter] for parameter in own] for label, own in shares_of(net, patterns).items()}


def test_by_the_submodule_of_the_label_or_by_patterns_in_the_models_order() -> None:
    found = names(Net(), {"encoder": [], "rest": ["scale", "decoder.*"]})
    assert found == {
        "encoder": ["encoder.0.weight", "encoder.0.bias", "encoder.1.weight", "encoder.1.bias"],
        "rest": ["scale", "decoder.weight", "decoder.bias"],
    }


def test_a_tied_parameter_has_several_names_and_one_owner() -> None:
    net = Net()
    net.encoder[1].weight = nn.Parameter(torch.zeros(3, 4))
    net.decoder.weight = net.encoder[1].weight
    patterns = {"encoder": [], "decoder": ["decoder.bias", "scale"]}
    assert "encoder.1.weight" in names(net, patterns)["encoder"]
    with pytest.raises(UsageError, match=r"'encoder.1.weight': in the optimizers encoder and decoder"):
        shares_of(net, {"encoder": [], "decoder": ["decoder.*", "scale"]})


def test_frozen_parameters_are_in_none() -> None:
    net = Net()
    net.encoder.requires_grad_(False)
    net.scale.requires_grad_(False)
    assert names(net, {"decoder": []}) == {"decoder": ["decoder.weight", "decoder.bias"]}
    with pytest.raises(UsageError, match=r"optimizers.encoder: all of its parameters are frozen"):
        shares_of(net, {"encoder": [], "decoder": []})


@pytest.mark.parametrize(
    ("patterns", "message", "remedy"),
    [
        ({"encoder": []}, "'scale', 'decoder.weight', 'decoder.bias': in none of the optimizers encoder", "parameters"),
        (
            {"encoder": [], "rest": ["scale", "decoder.*", "encoder.0.*"]},
            "'encoder.0.weight', 'encoder.0.bias': in the optimizers encoder and rest",
            "narrower patterns",
        ),
        ({"encodr": []}, "the model has no submodule 'encodr'", "the submodules are decoder, encoder"),
        ({"main": ["encodr.*"]}, r"pattern 'encodr.\*' matches no parameter", "encoder"),
    ],
)
def test_what_does_not_fit_is_told_with_a_remedy(patterns: dict[str, list[str]], message: str, remedy: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        shares_of(Net(), patterns)
    assert remedy in str(caught.value.remedy)
