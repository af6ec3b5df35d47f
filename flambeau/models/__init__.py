"""Models: plain `nn.Module` classes that a configuration names."""

from flambeau.models.gpt import GPT
from flambeau.models.lenet import LeNet
from flambeau.models.mlp import MLP
from flambeau.models.resnet import ResNet

__all__ = [
    "GPT",
    "MLP",
    "LeNet",
    "ResNet",
]
