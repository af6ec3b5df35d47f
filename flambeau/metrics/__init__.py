"""Metrics: `update(outputs, targets)`, `compute()`, `reset()`, exact over a whole data set."""

from flambeau.metrics.accuracy import Accuracy, TopKAccuracy
from flambeau.metrics.auroc import AUROC
from flambeau.metrics.base import MergeableMetric, Metric, RatioMetric
from flambeau.metrics.confusion import F1, ConfusionMatrix, MeanIoU, Precision, Recall
from flambeau.metrics.foreign import metric_values, prepare_metric
from flambeau.metrics.images import PSNR
from flambeau.metrics.regression import (
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    R2Score,
    RootMeanSquaredError,
)

__all__ = [
    "Metric",
    "MergeableMetric",
    "RatioMetric",
    "Accuracy",
    "TopKAccuracy",
    "AUROC",
    "ConfusionMatrix",
    "F1",
    "MeanIoU",
    "Precision",
    "Recall",
    "PSNR",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquaredError",
    "R2Score",
    "RootMeanSquaredError",
    "prepare_metric",
    "metric_values",
]
