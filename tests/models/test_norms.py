"""Batch norms become norms that look at one sample alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flambeau.models import ResNet, convert_norms


def test_an_instance_norm_is_torchs() -> None:
    """With the batch norm's scale and shift, for images of any size."""
    batch_norm = nn.BatchNorm2d(6, eps=1e-3).double()
    nn.init.normal_(batch_norm.weight)
    nn.init.normal_(batch_norm.bias)
    theirs = nn.InstanceNorm2d(6, eps=1e-3, affine=True).double()
    theirs.load_state_dict({"weight": batch_norm.weight, "bias": batch_norm.bias})
    images = torch.randn(3, 6, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(convert_norms(batch_norm, "instance")(images), theirs(images))


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 16), (7, 1)])
def test_a_group_norm_has_as_many_groups_as_divide_its_channels(channels: int, groups: int) -> None:
    converted = convert_norms(nn.Sequential(nn.BatchNorm1d(channels)), "group")[0]  # type: ignore[index]
    assert isinstance(converted, nn.GroupNorm)
    assert converted.num_groups == groups


@pytest.mark.parametrize("to", ["group", "instance"])
def test_no_sample_changes_anothers_result(to: str) -> None:
    """In training, which with batch norm it does; every batch norm of the network is gone."""
    torch.manual_seed(0)
    model = ResNet(small_images=True, in_channels=1).double()
    images = torch.randn(4, 1, 16, 16, dtype=torch.float64)
    assert (model(images)[:1] - model(images[:2])[:1]).abs().max() > 1e-6
    assert convert_norms(model, to) is model  # type: ignore[arg-type]
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    torch.testing.assert_close(model(images)[:1], model(images[:1]))


def test_scales_and_shifts_stay_the_same_parameters() -> None:
    """An optimizer that was made before goes on to step them; the names stay, and statistics go."""
    model = ResNet(depth=18)
    before = dict(model.named_parameters())
    convert_norms(model, "group")
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert len(dict(model.named_parameters())) == len(before)
    assert not list(model.buffers())


def test_batch_leaves_the_model_as_it_is() -> None:
    norm = nn.BatchNorm2d(3)
    assert convert_norms(norm, "batch") is norm
