"""Models: plain `nn.Module` classes that a configuration names."""

from flambeau.models.gpt import GPT
from flambeau.models.gru_classifier import GRUClassifier
from flambeau.models.lenet import LeNet
from flambeau.models.mlp import MLP
from flambeau.models.resnet import ResNet
from flambeau.models.transformer_classifier import TransformerClassifier

__all__ = [
    "GPT",
    "MLP",
    "GRUClassifier",
    "LeNet",
    "ResNet",
    "TransformerClassifier",
]
