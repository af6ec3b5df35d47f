"""Optimizers by name, parameter groups, the direct optimizer step, and schedules of the learning rate."""

from flambeau.optim.build import build_optimizer
from flambeau.optim.clip import clip_gradient_norm
from flambeau.optim.direct import direct_step
from flambeau.optim.groups import learning_rates
from flambeau.optim.lazy_dynamo import defer_dynamo_import
from flambeau.optim.schedules import Constant, Cosine, Linear, MultiStep, OneCycle, Schedule

__all__ = [
    "build_optimizer",
    "direct_step",
    "clip_gradient_norm",
    "learning_rates",
    "defer_dynamo_import",
    "Schedule",
    "Constant",
    "Linear",
    "Cosine",
    "MultiStep",
    "OneCycle",
]
