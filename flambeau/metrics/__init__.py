"""Metrics: `update(outputs, targets)`, `compute()`, `reset()`, exact over a whole data set."""

from flambeau.metrics.accuracy import Accuracy, TopKAccuracy
from flambeau.metrics.base import Metric, RatioMetric
from flambeau.metrics.foreign import metric_values, prepare_metric
from flambeau.metrics.language import BitsPerByte, Perplexity
from flambeau.metrics.regression import MeanAbsoluteError, MeanSquaredError, RootMeanSquaredError

__all__ = [
    "Metric",
    "RatioMetric",
    "Accuracy",
    "TopKAccuracy",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "RootMeanSquaredError",
    "BitsPerByte",
    "Perplexity",
    "prepare_metric",
    "metric_values",
]
