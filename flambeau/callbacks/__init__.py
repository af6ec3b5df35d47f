"""Callbacks that come with Flambeau."""

from flambeau.callbacks.generated_images import GeneratedImages
from flambeau.callbacks.reduce_on_plateau import ReduceOnPlateau
from flambeau.callbacks.sample_images import SampleImages
from flambeau.callbacks.time_limit import TimeLimit

__all__ = ["GeneratedImages", "ReduceOnPlateau", "SampleImages", "TimeLimit"]
