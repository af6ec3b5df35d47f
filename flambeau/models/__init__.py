"""Models: plain `nn.Module` classes that a configuration names."""

from flambeau.models.backbone import Backbone, FeatureExtractor
from flambeau.models.gpt import GPT
from flambeau.models.gru_classifier import GRUClassifier
from flambeau.models.lenet import LeNet
from flambeau.models.mlp import MLP
from flambeau.models.norms import convert_norms
from flambeau.models.resnet import ResNet
from flambeau.models.transformer_classifier import TransformerClassifier
from flambeau.models.vit import ViT

__all__ = [
    "GPT",
    "MLP",
    "Backbone",
    "FeatureExtractor",
    "GRUClassifier",
    "LeNet",
    "ResNet",
    "TransformerClassifier",
    "ViT",
    "convert_norms",
]
