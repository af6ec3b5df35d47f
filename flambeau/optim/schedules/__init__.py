"""Schedules: the learning rate as a pure function of the number of the optimizer step."""

from flambeau.optim.schedules.base import Schedule
from flambeau.optim.schedules.shapes import Constant, Cosine, Linear, MultiStep, OneCycle

__all__ = ["Schedule", "Constant", "Linear", "Cosine", "MultiStep", "OneCycle"]
