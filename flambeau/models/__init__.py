"""Models: plain `nn.Module` classes that a configuration names."""

from flambeau.models.autoencoder import Autoencoder
from flambeau.models.lenet import LeNet
from flambeau.models.mlp import MLP
from flambeau.models.rescale import Rescale
from flambeau.models.resnet import ResNet
from flambeau.models.unet import UNet
from flambeau.models.vit_autoencoder import ViTAutoencoder

__all__ = ["MLP", "Autoencoder", "LeNet", "Rescale", "ResNet", "UNet", "ViTAutoencoder"]
