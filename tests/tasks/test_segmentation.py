"""Segmentation: a class for every pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.commands import Runs

from flambeau import Trainer
from flambeau.criterions import CrossEntropy, Dice
from flambeau.data import ArrayDataset
from flambeau.data.shapes import Shapes
from flambeau.models import UNet

SHORT = ("trainer.epochs=null", "trainer.steps=3", "tracking=null", "data.train_size=20", "data.val_size=30")


def test_iou_and_accuracy_are_scikit_learns_of_all_pixels(runs: Runs) -> None:
    """Areas are added up over the whole split before they are divided; the batches are ragged."""
    metrics = pytest.importorskip("sklearn.metrics")
    runs.train("segmentation", *SHORT, "data.eval_batch_size=7")
    scores, predicted = runs.evaluate("val"), runs.predict("val").argmax(1).ravel()
    masks = Shapes(train_size=1, val_size=30, test_size=0).val.targets.numpy().ravel()
    assert scores["mean_iou"] == pytest.approx(metrics.jaccard_score(masks, predicted, average="macro"), rel=1e-12)
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(masks, predicted), rel=1e-12)


@pytest.mark.parametrize("criterion", [CrossEntropy(ignore_index=255), Dice(ignore_index=255)], ids=["pixels", "dice"])
def test_accumulation_changes_no_weight_where_pixels_are_ignored(criterion: torch.nn.Module) -> None:
    """Though one half of the batch has far fewer pixels that count; in float64."""
    whole = Shapes(image_size=16, train_size=4, val_size=0, test_size=0).train
    masks = whole.targets.clone()
    masks[0] = 255
    masks[1, 2:] = 255
    masks[3, :, 9:] = 255
    data = ArrayDataset(whole.inputs.double(), masks)

    def trained(accumulate: int) -> torch.Tensor:
        torch.manual_seed(0)
        model = UNet(num_classes=4, depth=1, width=4).eval()
        for norm in model.modules():  # its statistics are of a micro-batch, which is another matter
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.eval()
        trainer = Trainer(
            model, data, criterion, torch.optim.SGD(model.parameters(), lr=0.1), steps=3, batch_size=4, device="cpu",
            precision="fp64", accumulate=accumulate, progress=False, freeze=["*.1", "*.4"],
        )  # fmt: skip
        trainer.fit()
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    once = trained(1)
    for accumulate in (2, 4):
        torch.testing.assert_close(trained(accumulate), once, rtol=1e-10, atol=1e-13)


def test_the_dice_loss_is_had_by_name_and_logs_its_parts(runs: Runs) -> None:
    run = runs.train("segmentation", *SHORT, "criterion={name: dice, cross_entropy: 0.5}")
    text = (run / "metrics.jsonl").read_text()
    assert "train/dice" in text and "train/cross_entropy" in text


def test_a_file_of_images_is_segmented(runs: Runs) -> None:
    """Of any size that the model takes: here one that no halving divides."""
    runs.train("segmentation", *SHORT)
    np.save("images.npy", np.zeros((2, 1, 21, 37), np.float32))
    assert runs.predict("images.npy").shape == (2, 4, 21, 37)


@pytest.mark.slow
def test_shapes_are_found(runs: Runs) -> None:
    """The stated score, on images that no training saw; all background would have a mean IoU under 0.25."""
    runs.train("segmentation")
    scores = runs.evaluate("test")
    assert scores["mean_iou"] >= 0.55
    assert scores["accuracy"] >= 0.9
