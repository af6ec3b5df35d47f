"""The shipped models: shapes, sizes and parameter names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from flambeau.models import MLP, LeNet, ResNet


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("shape", [(64,), (1, 8, 8), (4, 4, 4)])
def test_mlp_takes_inputs_of_any_shape_with_the_right_number_of_features(shape: tuple[int, ...]) -> None:
    """An image is flattened; 64 numbers are 64 numbers."""
    assert MLP(num_classes=7, in_features=64)(torch.randn(3, *shape)).shape == (3, 7)


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_mlp_has_as_many_hidden_layers_as_asked(num_layers: int) -> None:
    """`num_layers` counts hidden layers: with 0 the model is one linear map."""
    model = MLP(num_layers=num_layers, hidden_size=16)
    assert sum(isinstance(module, nn.Linear) for module in model.modules()) == num_layers + 1


def test_mlp_drops_units_in_training_only() -> None:
    """Two passes differ in training with dropout, and agree in evaluation."""
    model, inputs = MLP(dropout=0.5), torch.randn(8, 64)
    assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))


@pytest.mark.parametrize("image_size", [8, 9, 15, 16, 28, 31, 32, 33, 64])
def test_lenet_takes_any_image_from_8_by_8(image_size: int) -> None:
    """The convolutions are padded where the image would otherwise shrink to nothing."""
    model = LeNet(num_classes=5, in_channels=3, image_size=image_size)
    assert model(torch.randn(2, 3, image_size, image_size)).shape == (2, 5)


def test_lenet_at_32_by_32_has_the_sizes_of_the_paper() -> None:
    """Weights of LeCun et al. (1998) with full connections: 61,706 as commonly counted."""
    assert count(LeNet(image_size=32)) == 61_706
    assert count(LeNet(image_size=28)) == 61_706


def test_width_scales_the_maps_of_lenet_and_not_its_hidden_layer() -> None:
    """Width 2 doubles C1, C3 and C5; F6 is `hidden_size` by itself."""
    model = LeNet(width=2.0, hidden_size=30)
    convolutions = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    linears = [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
    assert convolutions == [12, 32]
    assert linears == [240, 30, 10]
    assert LeNet(width=0.01)(torch.randn(1, 1, 32, 32)).shape == (1, 10)


def test_lenet_learns_the_digits() -> None:
    """Over 97 % of held-out 8 x 8 digits after a few epochs of AdamW."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32))[:, None] / 16
    images = (images - images.mean()) / images.std()
    targets = torch.from_numpy(digits.target)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(images), generator=generator)
    train, held_out = order[:1437], order[1437:]
    torch.manual_seed(0)
    model = LeNet(image_size=8)
    steps = 12 * (len(train) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(12):
        for batch in train[torch.randperm(len(train), generator=generator)].split(64)[: len(train) // 64]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), targets[batch]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        accuracy = (model(images[held_out]).argmax(1) == targets[held_out]).double().mean().item()
    assert accuracy > 0.97


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_resnet_has_as_many_parameters_as_torchvisions(depth: int, parameters: int) -> None:
    """The counts that torchvision's documentation states, for 1000 classes."""
    with torch.device("meta"):
        assert count(ResNet(depth=depth, num_classes=1000)) == parameters  # type: ignore[arg-type]


@pytest.mark.torchvision
@pytest.mark.parametrize("depth", [18, 34, 50])
def test_torchvisions_weights_load_and_give_the_same_outputs(depth: int) -> None:
    """Same names, same shapes, same function."""
    models = pytest.importorskip("torchvision.models")
    theirs = getattr(models, f"resnet{depth}")().eval()
    ours = ResNet(depth=depth, num_classes=1000).eval()  # type: ignore[arg-type]
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


def test_resnet_names_its_parameters_as_torchvision_does() -> None:
    """The names that published weights use."""
    with torch.device("meta"):
        names = ResNet(depth=50).state_dict().keys()
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.downsample.0.weight", "layer1.0.downsample.1.bias"} < names
    assert {"layer4.2.conv3.weight", "layer4.2.bn3.num_batches_tracked", "fc.weight", "fc.bias"} < names
    assert len(names) == 320


def test_the_stem_for_small_images_keeps_their_size() -> None:
    """32 x 32 reaches the first stage whole, against 8 x 8 behind the standard stem; the last stage has 4 x 4."""
    seen: dict[bool, torch.Size] = {}
    for small in (False, True):
        model = ResNet(depth=18, small_images=small, in_channels=1).eval()
        model.layer1.register_forward_pre_hook(lambda _, args, small=small: seen.update({small: args[0].shape}))
        assert model(torch.randn(1, 1, 32, 32)).shape == (1, 10)
    assert seen[True][-2:] == (32, 32)
    assert seen[False][-2:] == (8, 8)


@pytest.mark.parametrize("depth", [18, 50])
def test_zero_init_makes_every_block_begin_as_its_shortcut(depth: int) -> None:
    """With a zero scale in each block's last norm, a block without projection passes its (positive) input on."""
    model = ResNet(depth=depth, zero_init_residual=True).eval()  # type: ignore[arg-type]
    block = model.layer1[1]
    channels = block.conv1.in_channels
    inputs = torch.rand(1, channels, 4, 4)
    assert torch.equal(block(inputs), inputs)
