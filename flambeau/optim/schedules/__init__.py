"""Schedules: the learning rate as a pure function of the number of the optimizer step."""

from flambeau.optim.schedules.base import Schedule, takes_epochs
from flambeau.optim.schedules.cycles import CosineRestarts, Cycles
from flambeau.optim.schedules.decays import WSD, Exponential, InverseSqrt, Piecewise, Polynomial
from flambeau.optim.schedules.phases import Phase, Phases
from flambeau.optim.schedules.shapes import Constant, Cosine, Linear, MultiStep, OneCycle

__all__ = [
    "Schedule",
    "takes_epochs",
    "Constant",
    "Linear",
    "Cosine",
    "MultiStep",
    "OneCycle",
    "Exponential",
    "Polynomial",
    "InverseSqrt",
    "WSD",
    "Piecewise",
    "CosineRestarts",
    "Cycles",
    "Phase",
    "Phases",
]
