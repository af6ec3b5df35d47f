"""Callbacks that come with Flambeau."""

from flambeau.callbacks.generated_images import GeneratedImages
from flambeau.callbacks.sample_images import SampleImages
from flambeau.callbacks.time_limit import TimeLimit

__all__ = ["GeneratedImages", "SampleImages", "TimeLimit"]
