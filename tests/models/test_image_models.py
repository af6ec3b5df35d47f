"""Models whose outputs are images, and outputs in the targets' own unit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flambeau.errors import UsageError
from flambeau.models import MLP, Autoencoder, Rescale, UNet, ViTAutoencoder


@pytest.mark.parametrize("shape", [(32, 32), (16, 48), (17, 23), (4, 5)])
def test_unet_gives_logits_for_every_pixel_of_any_image(shape: tuple[int, int]) -> None:
    """Odd sides too: the way up is padded."""
    model = UNet(num_classes=5, in_channels=3, depth=2, width=4)
    assert model(torch.randn(2, 3, *shape)).shape == (2, 5, *shape)


def test_unet_at_depth_4_and_width_64_has_the_channels_of_the_paper() -> None:
    """64 to 1024 on the way down and back; 31.0 million weights, as commonly counted with batch norm."""
    model = UNet(num_classes=2, in_channels=1)
    convolutions = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    down, up = [64, 128, 256, 512, 1024], [512, 256, 128, 64]
    assert convolutions == [c for c in down for _ in range(2)] + [c for c in up for _ in range(2)] + [2]
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 31.0


def test_unet_joins_the_maps_of_each_level_on() -> None:
    """Without the way through the depths, the first level alone still carries the image's detail."""
    torch.manual_seed(0)
    model = UNet(num_classes=2, depth=2, width=4).eval()
    for up in model.up:
        nn.init.zeros_(up.weight)
    one, other = torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    other[..., 5, 5] = 1.0
    changed = (model(one) != model(other)).any(1)[0].nonzero()
    assert len(changed) and (changed - 5).abs().max() <= 4  # four 3 x 3 convolutions


def test_unet_refuses_images_that_cannot_be_halved_so_often() -> None:
    with pytest.raises(UsageError, match="8 x 8 pixels cannot be halved 4 times") as caught:
        UNet(width=2)(torch.randn(1, 1, 8, 8))
    assert "model.depth" in str(caught.value)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_autoencoder_gives_images_of_the_same_shape_through_a_small_code(depth: int) -> None:
    model = Autoencoder(in_channels=3, depth=depth, width=4, code_channels=5)
    images = torch.randn(2, 3, 16, 24)
    assert model(images).shape == images.shape
    assert model.encoder(images).shape == (2, 5, 16 // 2**depth, 24 // 2**depth)


def test_autoencoder_refuses_images_that_it_would_give_back_in_another_size() -> None:
    with pytest.raises(UsageError, match="10 x 8") as caught:
        Autoencoder(depth=2, width=2)(torch.randn(1, 1, 10, 8))
    assert "multiples of 4" in str(caught.value)


def test_vit_autoencoder_puts_each_patch_back_where_it_was() -> None:
    """With layers that do nothing, the image itself comes out."""
    model = ViTAutoencoder(image_size=8, patch_size=4, in_channels=2, hidden_size=32, code_size=32, num_layers=1)
    for module in (model.encode, model.to_pixels):
        module[0] = nn.Identity()
    model.encoder, model.decoder = nn.Sequential(), nn.Sequential()
    for linear in (model.embed, model.encode[1], model.decode, model.to_pixels[1]):
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    nn.init.zeros_(model.positions)
    images = torch.randn(3, 2, 8, 8)
    assert torch.equal(model(images), images)


def test_vit_autoencoder_attends_to_other_patches() -> None:
    torch.manual_seed(0)
    model, images = ViTAutoencoder(image_size=8, patch_size=4, hidden_size=16, num_layers=1), torch.randn(1, 1, 8, 8)
    changed = images.clone()
    changed[..., :4, :4] += 1
    assert not torch.equal(model(images)[..., 4:, 4:], model(changed)[..., 4:, 4:])


def test_vit_autoencoder_refuses_sizes_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match="patches of 3"):
        ViTAutoencoder(image_size=8, patch_size=3)
    with pytest.raises(UsageError, match="3 heads"):
        ViTAutoencoder(hidden_size=64, num_heads=3)
    with pytest.raises(UsageError, match=r"16 x 16.*8 x 8"):
        ViTAutoencoder(image_size=16)(torch.randn(1, 1, 8, 8))


def test_rescaled_outputs_have_the_targets_unit() -> None:
    """Its two numbers go with the weights into checkpoints, and are not trained."""
    model = MLP(num_classes=1, in_features=4, output_mean=150.0, output_scale=75.0)
    plain = MLP(num_classes=1, in_features=4)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.endswith((".mean", ".std"))})
    inputs = torch.randn(5, 4)
    torch.testing.assert_close(model(inputs), 150 + 75 * plain(inputs))
    assert {"layers.6.mean", "layers.6.std"} <= model.state_dict().keys()
    assert len(list(model.parameters())) == len(list(plain.parameters()))


def test_outputs_are_rescaled_in_float32_whatever_autocast_does() -> None:
    """bfloat16 has no 150.5: it would be 150 or 151."""
    values = torch.tensor([[0.0078125]], dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Rescale(150.0, 64.0)(values).item() == 150.5
    assert Rescale(150.0, 64.0).double()(values.double()).dtype is torch.float64
