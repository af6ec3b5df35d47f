"""The Fréchet distance of generated and real samples."""

from __future__ import annotations

import pytest
import torch

from flambeau.errors import UsageError
from flambeau.metrics.frechet import FrechetDistance


def rows(count: int, features: int, *, seed: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=generator)
    return scale * torch.randn(count, features, generator=generator) @ mixing + torch.randn(
        features, generator=generator
    )


def distance(generated: torch.Tensor, real: torch.Tensor, batch: int | None = None) -> float:
    metric = FrechetDistance()
    for fake, true in zip(generated.split(batch or len(real)), real.split(batch or len(real)), strict=True):
        metric.update({"generated": fake, "real": true}, None)
    return float(metric.compute())


def test_it_is_the_formula_with_a_matrix_root_computed_otherwise() -> None:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the root by the eigenvalues of the product itself."""
    one, other = rows(200, 5, seed=0).double(), rows(200, 5, seed=1).double()
    product = one.T.cov() @ other.T.cov()
    root = torch.linalg.eigvals(product).sqrt().real.sum()
    expected = (one.mean(0) - other.mean(0)).square().sum() + one.T.cov().trace() + other.T.cov().trace() - 2 * root
    assert distance(one, other) == pytest.approx(float(expected), rel=1e-9)


def test_of_a_shift_it_is_the_square_of_the_shift_and_of_a_scale_that_of_the_standard_deviations() -> None:
    one = rows(100, 3, seed=0).double()
    assert distance(one, one) == pytest.approx(0.0, abs=1e-9)
    assert distance(one + torch.tensor([3.0, 4.0, 0.0]), one) == pytest.approx(25.0)
    centred = one - one.mean(0)
    assert distance(3 * centred, centred) == pytest.approx(4 * float(centred.T.cov().trace()))


def test_batches_do_not_matter_and_images_are_flattened() -> None:
    one, other = rows(64, 12, seed=2), rows(64, 12, seed=3)
    whole = distance(one, other)
    assert distance(one, other, batch=7) == pytest.approx(whole, rel=1e-12)
    assert distance(one.view(64, 3, 2, 2), other.view(64, 3, 2, 2)) == pytest.approx(whole, rel=1e-12)


def test_fewer_than_two_samples_have_no_distance_and_a_reset_forgets() -> None:
    metric = FrechetDistance()
    assert metric.compute().isnan()
    metric.update({"generated": rows(9, 2, seed=0), "real": rows(9, 2, seed=1)}, None)
    assert metric.compute().isfinite()
    metric.reset()
    assert metric.compute().isnan()
    assert metric.higher_is_better is False


def test_outputs_without_the_two_and_samples_that_are_too_large_are_told_of() -> None:
    metric = FrechetDistance()
    with pytest.raises(KeyError, match="needs the output 'generated' and got no dict"):
        metric.update(torch.zeros(2, 3), None)
    with pytest.raises(UsageError, match="samples of 5000 values"):
        metric.update({"generated": torch.zeros(2, 5000), "real": torch.zeros(2, 5000)}, None)
