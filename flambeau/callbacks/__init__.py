"""Callbacks that come with Flambeau."""

from flambeau.callbacks.sample_images import SampleImages
from flambeau.callbacks.sample_text import SampleText
from flambeau.callbacks.time_limit import TimeLimit

__all__ = ["SampleImages", "SampleText", "TimeLimit"]
