"""Models: plain `nn.Module` classes that a configuration names."""

from flambeau.models.autoencoder import Autoencoder
from flambeau.models.backbone import Backbone, FeatureExtractor
from flambeau.models.gpt import GPT
from flambeau.models.gru_classifier import GRUClassifier
from flambeau.models.lenet import LeNet
from flambeau.models.mlp import MLP
from flambeau.models.norms import convert_norms
from flambeau.models.rescale import Rescale
from flambeau.models.resnet import ResNet
from flambeau.models.transformer_classifier import TransformerClassifier
from flambeau.models.unet import UNet
from flambeau.models.vit import ViT
from flambeau.models.vit_autoencoder import ViTAutoencoder

__all__ = [
    "Autoencoder",
    "Backbone",
    "FeatureExtractor",
    "GPT",
    "GRUClassifier",
    "LeNet",
    "MLP",
    "ResNet",
    "Rescale",
    "TransformerClassifier",
    "UNet",
    "ViT",
    "ViTAutoencoder",
    "convert_norms",
]
