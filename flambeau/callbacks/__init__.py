"""Callbacks that come with Flambeau."""

from flambeau.callbacks.gradients import Gradients
from flambeau.callbacks.sample_images import SampleImages
from flambeau.callbacks.time_limit import TimeLimit

__all__ = ["Gradients", "SampleImages", "TimeLimit"]
