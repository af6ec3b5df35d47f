"""How near the distribution of generated images is to that of real ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flambeau.errors import UsageError
from flambeau.metrics.base import Metric, wide_dtype
from flambeau.registry import register

_MOST_FEATURES = 4096


@register.metric("frechet_distance")
class FrechetDistance(Metric):
    """Fréchet distance of Gaussians fitted to generated and real samples (Heusel et al., 2017, eq. 6); lower is better.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), of the means and covariances of the flattened samples themselves: no
    network is needed, and a distance is in squared units of the samples. It counts too small for few samples of many
    values; compare distances over the same number of samples only. For natural images torchmetrics has the distance in
    the features of Inception (`torchmetrics.image.FrechetInceptionDistance`).

    Args:
        generated: the key of the outputs that holds generated samples (N, ...).
        real: the key of the outputs that holds real ones.
    """

    higher_is_better = False

    def __init__(self, *, generated: str = "generated", real: str = "real") -> None:
        super().__init__()
        self.keys = (generated, real)
        self.reset()

    def update(self, outputs: Any, targets: Any) -> None:
        """Take in one batch of `outputs`, a dict; targets are not looked at."""
        for moments, key in zip(self._moments, self.keys, strict=True):
            if not isinstance(outputs, dict) or key not in outputs:
                has = f"a dict of {', '.join(map(repr, outputs))}" if isinstance(outputs, dict) else "no dict"
                raise KeyError(f"frechet_distance needs the output {key!r} and got {has}")
            moments.add(outputs[key])

    def compute(self) -> Tensor:
        """The distance; NaN for fewer than two samples."""
        (mean, covariance), (other_mean, other_covariance) = (moments.compute() for moments in self._moments)
        # The trace of (C1 C2)^(1/2) is that of (C1^(1/2) C2 C1^(1/2))^(1/2), which is symmetric.
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors * values.clamp_min(0).sqrt() @ vectors.T
        common = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp_min(0).sqrt().sum()
        spread = covariance.trace() + other_covariance.trace() - 2 * common
        distance: Tensor = (mean - other_mean).square().sum() + spread
        return distance

    def reset(self) -> None:
        """Forget all batches."""
        self._moments = (_Moments(), _Moments())


class _Moments:
    """Mean and covariance of the rows seen so far, by sums in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Tensor | None = None
        self._products: Tensor | None = None

    def add(self, samples: Tensor) -> None:
        rows = samples.detach().flatten(1).to(wide_dtype(samples.device))
        if rows.shape[1] > _MOST_FEATURES:
            raise UsageError(
                f"frechet_distance: samples of {rows.shape[1]} values would take a covariance of that size squared",
                remedy=f"make them smaller (up to {_MOST_FEATURES}), or use a distance in features of a network",
            )
        total, products = rows.sum(0), rows.T @ rows
        self._count += len(rows)
        self._sum = total if self._sum is None else self._sum + total
        self._products = products if self._products is None else self._products + products

    def compute(self) -> tuple[Tensor, Tensor]:
        if self._sum is None or self._products is None or self._count < 2:
            return torch.full((1,), torch.nan), torch.eye(1)
        total, products = self._sum.cpu().double(), self._products.cpu().double()
        mean = total / self._count
        return mean, (products - self._count * torch.outer(mean, mean)) / (self._count - 1)
