"""Weights from elsewhere as the start of a model: runs, safetensors and torch files, the Hugging Face hub, timm."""

from flambeau.pretrained.load import load_pretrained
from flambeau.pretrained.matching import Mismatch, Report

__all__ = ["load_pretrained", "Report", "Mismatch"]
