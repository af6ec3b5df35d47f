"""Optimizers by name, parameter groups, the direct optimizer step, and schedules of the learning rate."""

from flambeau.optim.build import build_optimizer
from flambeau.optim.clip import clip_gradient_norm, clip_gradient_value
from flambeau.optim.clip_groups import Clipping
from flambeau.optim.direct import direct_step
from flambeau.optim.groups import learning_rates, weight_decays
from flambeau.optim.lazy_dynamo import defer_dynamo_import
from flambeau.optim.schedules import (
    WSD,
    Constant,
    Cosine,
    CosineRestarts,
    Cycles,
    Exponential,
    InverseSqrt,
    Linear,
    MultiStep,
    OneCycle,
    Phase,
    Phases,
    Piecewise,
    Polynomial,
    Schedule,
    takes_epochs,
)

__all__ = [
    "build_optimizer",
    "direct_step",
    "clip_gradient_norm",
    "clip_gradient_value",
    "Clipping",
    "learning_rates",
    "weight_decays",
    "defer_dynamo_import",
    "Schedule",
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
    "takes_epochs",
]
