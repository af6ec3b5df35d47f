"""Criterions: what training minimises, and how many units its mean runs over."""

from flambeau.criterions.cross_entropy import CrossEntropy
from flambeau.criterions.focal import FocalLoss, SigmoidFocalLoss
from flambeau.criterions.mse import MSE
from flambeau.criterions.token_cross_entropy import TokenCrossEntropy
from flambeau.criterions.units import reduction_of, unit_counter, units_of, weigh

__all__ = [
    "CrossEntropy",
    "FocalLoss",
    "MSE",
    "SigmoidFocalLoss",
    "TokenCrossEntropy",
    "reduction_of",
    "unit_counter",
    "units_of",
    "weigh",
]
