"""Criterions: what training minimises, and how many units its mean runs over."""

from flambeau.criterions.cross_entropy import CrossEntropy
from flambeau.criterions.dice import Dice
from flambeau.criterions.mse import MSE
from flambeau.criterions.units import reduction_of, unit_counter, units_of, weigh

__all__ = ["CrossEntropy", "Dice", "MSE", "reduction_of", "unit_counter", "units_of", "weigh"]
