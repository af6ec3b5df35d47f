"""Inner layers of other models, and a classifier on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.states import assert_same
from torch import nn

from flambeau.cli import main
from flambeau.errors import UsageError
from flambeau.models import Backbone, FeatureExtractor, ResNet, ViT


def network() -> ResNet:
    torch.manual_seed(0)
    return ResNet(small_images=True, in_channels=1)


def test_outputs_of_named_layers_are_what_the_model_computes() -> None:
    """At any depth, in one forward pass; shapes and channels are known beforehand."""
    model = network().eval()
    features = FeatureExtractor(model, ["layer1", "layer2.0.bn2", "fc"], torch.zeros(1, 1, 8, 8))
    assert features.shapes == {"layer1": (64, 8, 8), "layer2.0.bn2": (128, 4, 4), "fc": (10,)}
    assert features.channels == {"layer1": 64, "layer2.0.bn2": 128, "fc": 10}
    images = torch.randn(2, 1, 8, 8)
    found = features(images)
    assert torch.equal(found["fc"], model(images))
    assert torch.equal(found["layer1"], model.layer1(model.relu(model.bn1(model.conv1(images)))))


def test_features_of_tokens_are_their_last_dimension() -> None:
    extractor = FeatureExtractor(ViT(image_size=8, width=16), ["blocks.1"], torch.zeros(1, 1, 8, 8))
    assert extractor.shapes == {"blocks.1": (5, 16)}
    assert extractor.channels == {"blocks.1": 16}


def test_finding_out_the_channels_changes_nothing() -> None:
    """Not the running statistics of batch norms, nor modes, nor gradients, nor random numbers."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.BatchNorm2d(4))
    model[3].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    FeatureExtractor(model, ["3"], torch.zeros(1, 1, 8, 8))
    assert_same(dict(model.state_dict()), before)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())


def test_what_the_layer_does_not_depend_on_wants_no_gradient() -> None:
    """Of several processes each would wait for such a gradient for ever."""
    model = Backbone({"name": "resnet", "small_images": True, "in_channels": 1}, "layer2", input_shape=(1, 8, 8))
    loss = model(torch.randn(2, 1, 8, 8)).sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert not model.body.model.fc.weight.requires_grad  # type: ignore[union-attr]
    assert model.body.model.conv1.weight.requires_grad  # type: ignore[union-attr]


class Twice(nn.Module):
    """Calls one layer twice, another not at all, and a third gives no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never, self.pair = nn.Linear(3, 3), nn.Linear(3, 3), nn.LSTM(3, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.pair(self.twice(self.twice(x)))[0]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("twice", "'twice' of Twice is called 2 times"),
        ("never", "'never' of Twice is called 0 times"),
        ("pair", "'pair' of Twice gives a tuple"),
        ("other", "Twice has no layer 'other'.*it has twice, never, pair"),
        ("", "Twice has no layer ''"),
    ],
)
def test_a_layer_without_one_output_is_refused(layer: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}"):
        FeatureExtractor(Twice(), [layer], torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"depth": 18}, "no `name`"),
        ({"name": "resnett"}, "did you mean 'resnet'"),
        ({"name": "resnet", "dept": 18}, "model.model: resnet: .*dept"),
        ({"name": "os.system"}, "standard library, which is refused"),
    ],
)
def test_a_model_that_cannot_be_had_is_told(model: dict[str, Any], message: str) -> None:
    """By its name, and not as a traceback."""
    with pytest.raises(UsageError, match=f"(?s){message}"):
        Backbone(model, "layer1")


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_configuration_trains_on_a_layer_by_name(norm: str, tmp_path: Any, capsys: Any) -> None:
    """The whole way, with two micro-batches."""
    body = "{name: resnet, small_images: true, in_channels: 1}"
    sizes = "input_shape: '${data.input_shape}', num_classes: '${data.num_classes}'"
    model = f"model={{name: backbone, model: {body}, layer: layer1, norm: {norm}, {sizes}}}"
    options = ["trainer.epochs=null", "trainer.steps=2", "trainer.debug=few_batches", "data.batch_size=4"]
    assert main(["train", "mlp", model, *options, "trainer.accumulate=2", "--run-dir", str(tmp_path / "run")]) == 0
    assert "get no gradient" not in capsys.readouterr().err


def test_a_frozen_body_is_used_as_it_is() -> None:
    """Only the classifier is trained."""
    model = Backbone({"name": "lenet", "image_size": 8}, "features", input_shape=(1, 8, 8), frozen=True)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == [
        "head.weight",
        "head.bias",
    ]


@pytest.mark.torchvision
def test_layers_of_torchvisions_models_are_had_by_name() -> None:
    """By import path, with torchvision's names of layers."""
    pytest.importorskip("torchvision")
    model = Backbone({"name": "torchvision.models.resnet18"}, "layer3", input_shape=(3, 64, 64))
    assert model.body.channels == {"layer3": 256}
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 10)
