"""Denoising: the autoencoders make a better image than the one that they are given."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.commands import Runs

from flambeau.data import EvalFeeder
from flambeau.data.noisy_digits import NoisyDigits

SHORT = ("trainer.epochs=null", "trainer.steps=3", "tracking=null")


def noisy_and_clean(name: str) -> tuple[np.ndarray, np.ndarray]:
    data = NoisyDigits()
    inputs, targets = next(EvalFeeder(getattr(data, name), batch_size=10_000).batches())
    return inputs.numpy(), targets.numpy()


def psnr(images: np.ndarray, clean: np.ndarray) -> float:
    return -10 * math.log10(np.square(images.astype(float) - clean).mean())


def test_psnr_and_mse_are_of_all_pixels_of_the_split(runs: Runs) -> None:
    """Compared with the clean images; the batches are ragged."""
    runs.train("denoise", *SHORT, "data.eval_batch_size=37")
    scores, outputs = runs.evaluate("val"), runs.predict("val")
    _, clean = noisy_and_clean("val")
    assert scores["psnr"] == pytest.approx(psnr(outputs, clean), rel=1e-6)
    assert scores["mse"] == pytest.approx(np.square(outputs - clean).mean(dtype=float), rel=1e-5)
    assert scores["loss"] == pytest.approx(scores["mse"], rel=1e-5)


def test_no_noise_is_added_to_the_images_of_a_user(runs: Runs) -> None:
    """A file is predicted as it is; that of the split's inputs like the split."""
    runs.train("denoise", *SHORT)
    np.save("noisy.npy", noisy_and_clean("test")[0])
    np.testing.assert_array_equal(runs.predict("noisy.npy"), runs.predict("test"))


def test_a_figure_of_input_output_and_target_is_logged(runs: Runs) -> None:
    """In the event file of the run."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = runs.train("denoise", *SHORT[:2], "callbacks.sample_images.count=4")
    events = event_accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["val/input_output_target"]
    image = events.Images("val/input_output_target")[-1]
    side, gap = NoisyDigits().image_size, 2
    assert (image.width, image.height) == (2 * (3 * side + 2) + gap, 2 * side + gap)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "decibels"), [("denoise", 21.5), ("denoise_vit", 19.5)])
def test_noise_is_taken_off(runs: Runs, config: str, decibels: float) -> None:
    """The noisy images have 12.0 dB; the stated score is reached on images that no training saw."""
    runs.train(config)
    assert psnr(*noisy_and_clean("test")) == pytest.approx(12.04, abs=0.1)
    assert runs.evaluate("test")["psnr"] >= decibels
