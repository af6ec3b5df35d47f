"""The Dice loss: its definition, what it ignores, and that parts of a batch weigh rightly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flambeau.criterions import MSE, CrossEntropy, Dice, units_of, weigh


def images(count: int = 5, ignored: int | None = None) -> tuple[Tensor, Tensor]:
    """Logits and masks of 3 classes in float64; of the first image nothing counts, of the others less and less."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(3, (count, 4, 6), generator=generator)
    if ignored is not None:
        for image in range(count):
            targets[image, image:] = ignored
    return torch.randn(count, 3, 4, 6, generator=generator, dtype=torch.float64), targets


def test_dice_is_one_less_the_overlap_of_each_class_in_each_image() -> None:
    """Written out by loops."""
    logits, targets = images()
    p, losses = logits.softmax(1), []
    for image in range(5):
        for label in range(3):
            t = (targets[image] == label).double()
            overlap, both = (p[image, label] * t).sum(), p[image, label].sum() + t.sum()
            losses.append(1 - (2 * overlap + 0.5) / (both + 0.5))
    loss, parts = Dice(cross_entropy=0.0, smooth=0.5)(logits, targets)
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    assert loss == parts["dice"]


def test_the_cross_entropy_beside_it_is_torchs() -> None:
    """Where nothing is ignored, the mean over images is the mean over pixels."""
    logits, targets = images()
    loss, parts = Dice(cross_entropy=2.0)(logits, targets)
    torch.testing.assert_close(parts["cross_entropy"], nn.functional.cross_entropy(logits, targets))
    torch.testing.assert_close(loss, parts["dice"] + 2 * parts["cross_entropy"])


def test_what_is_ignored_changes_nothing() -> None:
    """Neither its logits nor whether it is there at all."""
    logits, targets = images(ignored=255)
    expected = Dice(ignore_index=255)(logits, targets)[0]
    changed = torch.where((targets == 255)[:, None], 7.0, logits)
    changed[:, 1] += 100 * (targets == 255)
    torch.testing.assert_close(Dice(ignore_index=255)(changed, targets)[0], expected)
    torch.testing.assert_close(Dice(ignore_index=255)(logits[1:], targets[1:])[0], expected)


def test_a_perfect_prediction_costs_nothing() -> None:
    _, targets = images()
    loss, _ = Dice()(1000.0 * nn.functional.one_hot(targets).movedim(-1, 1).float(), targets)
    assert loss < 1e-6


@pytest.mark.parametrize(
    "make",
    [lambda: Dice(ignore_index=255), Dice, lambda: CrossEntropy(ignore_index=255), CrossEntropy],
    ids=["dice", "dice, all counted", "cross entropy", "cross entropy, all counted"],
)
def test_parts_of_a_batch_weighed_by_their_units_have_the_gradient_of_the_whole(make: Any) -> None:
    """Though in one part hardly a pixel counts, and in another not one."""
    criterion = make()
    ignored = 255 if criterion.ignore_index == 255 else None
    logits, targets = images(ignored=ignored)

    def loss_of(outputs: Tensor, masks: Tensor) -> Tensor:
        loss = criterion(outputs, masks)
        return loss[0] if isinstance(loss, tuple) else loss

    whole, parts = (logits.clone().requires_grad_() for _ in range(2))
    loss_of(whole, targets).backward()
    units = [units_of(criterion, part) for part in targets.split((1, 1, 3))]
    total = sum(int(count) for count in units)
    for outputs, masks, count in zip(parts.split((1, 1, 3)), targets.split((1, 1, 3)), units, strict=True):
        if count:
            (weigh(loss_of(outputs, masks), count) / total).backward(retain_graph=True)
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-12, atol=1e-15)
    if ignored is not None:
        assert int(units[0]) == 0 and int(units[1]) < int(units[2])


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\).*\(2, 1, 4, 4\)"):
        Dice()(torch.randn(2, 3, 4, 4), torch.zeros(2, 1, 4, 4).long())


def test_half_precision_is_widened_before_the_softmax() -> None:
    logits, targets = images()
    loss, _ = Dice()(logits.bfloat16(), targets)
    assert loss.dtype is torch.float32


def test_mse_in_a_unit_of_its_own() -> None:
    """Differences are divided by the scale before they are squared: float16 has no room for 300²."""
    outputs, targets = torch.randn(8, 2, dtype=torch.float64), torch.randn(8, 2, dtype=torch.float64)
    torch.testing.assert_close(MSE(scale=3.0)(outputs, targets), MSE()(outputs, targets) / 9)
    assert torch.equal(MSE()(outputs, targets), nn.MSELoss()(outputs, targets))
    assert MSE(scale=300.0)(torch.full((4, 1), 600.0).half(), torch.zeros(4, 1).half()) == 4


def test_a_batch_of_nothing_that_counts_costs_nothing_and_has_no_gradient() -> None:
    """Its share in an accumulated step is 0, and not 0 / 0."""
    logits, targets = images()
    logits.requires_grad_()
    criterion = Dice(ignore_index=255)
    loss, _ = criterion(logits, torch.full_like(targets, 255))
    loss.backward()
    assert loss == 0 and int(criterion.units(torch.full_like(targets, 255))) == 0
    assert (logits.grad == 0).all()
