"""The adversarial trainer, with the configuration that ships."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.processes import together
from support.projects import InProcess
from support.states import assert_same_runs
from torch import nn
from torch.utils.data import TensorDataset

from flambeau import Trainer
from flambeau.callbacks import GeneratedImages, SampleImages
from flambeau.errors import UsageError
from flambeau.metrics.frechet import FrechetDistance
from flambeau.models.gan import GAN
from flambeau.tracking import Tracker
from flambeau.training.gan import GANTrainer
from flambeau.training.noise import normal_rows

SHORT = ("trainer.epochs=2", "trainer.validate_every_epochs=1", "model.hidden_size=16", "trainer.log_every=4")


def images(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 1, 4, 4, generator=generator), torch.zeros(count))


def make(**options: Any) -> GANTrainer:
    torch.manual_seed(5)
    model = GAN((1, 4, 4), latent_size=3, hidden_size=8)
    options = {"steps": 6, "batch_size": 8, "device": "cpu", "progress": False, "log_every": 2, **options}
    return GANTrainer(
        model,
        images(20, 0),
        nn.BCEWithLogitsLoss(),
        {
            "generator": torch.optim.SGD(model.generator.parameters(), lr=0.05),
            "discriminator": torch.optim.SGD(model.discriminator.parameters(), lr=0.05),
        },
        val_data=images(9, 1),
        metrics={"frechet_distance": FrechetDistance()},
        **options,
    )


class Gallery(Tracker):
    """Keeps the images that it is sent."""

    def __init__(self) -> None:
        self.images: list[tuple[str, torch.Tensor, int]] = []

    def log_scalars(self, values: Any, step: int) -> None: ...

    def log_image(self, name: str, image: Any, step: int) -> None:
        self.images.append((name, image, step))


class TestNoise:
    @settings(max_examples=30, deadline=None)
    @given(rows=st.lists(st.integers(0, 2000), max_size=20), seed=st.integers(0, 2**32))
    def test_a_rows_numbers_do_not_depend_on_the_rows_beside_it(self, rows: list[int], seed: int) -> None:
        together = normal_rows(seed, rows, (2, 3))
        assert together.shape == (len(rows), 2, 3)
        for row, own in zip(rows, together, strict=True):
            assert torch.equal(own, normal_rows(seed, [row], (2, 3))[0])

    def test_it_is_standard_normal_and_another_for_another_seed(self) -> None:
        drawn = normal_rows(0, range(4000), (5,))
        assert abs(float(drawn.mean())) < 0.03
        assert abs(float(drawn.std()) - 1) < 0.03
        assert len(drawn.flatten().unique()) > 0.99 * drawn.numel()
        assert not torch.equal(drawn, normal_rows(1, range(4000), (5,)))


def train_in_float64(_: int) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    trainer = make(precision="fp64")
    trainer.fit()
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}, trainer.recorder.history


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_make_the_images_and_the_weights_of_one(ranks: int) -> None:
    """Noise included, with a last batch of 4, and of 1 sample in a process."""
    expected, history = train_in_float64(0)
    for weights, records in together(ranks, train_in_float64, 0):
        for name, value in expected.items():
            difference = (weights[name].double() - value.double()).norm()
            assert difference <= 1e-10 * value.double().norm().clamp_min(1.0), name
        for one, other in zip(records, history, strict=True):
            assert one == pytest.approx(other, rel=1e-9)


def test_the_images_shown_are_of_the_same_noise_each_time_and_of_the_model_that_is_judged() -> None:
    gallery = Gallery()
    trainer = make(trackers=[gallery], callbacks=[GeneratedImages(count=5)], validate_every_steps=3)
    trainer.fit()
    assert [(name, step) for name, _, step in gallery.images] == [("val/generated", 3), ("val/generated", 6)]
    first, last = (image for _, image, _ in gallery.images)
    assert first.shape == last.shape == (5, 1, 4, 4)
    assert 0 <= float(last.min()) <= float(last.max()) <= 1
    again = trainer.generate(trainer.model.eval(), range(5))
    flat, shown = again.detach().flatten(1), last.flatten(1)
    low, high = flat.min(1, keepdim=True).values, flat.max(1, keepdim=True).values
    torch.testing.assert_close((flat - low) / (high - low), shown)


def test_images_of_a_trainer_that_generates_none_are_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    trainer = Trainer(model, images(8, 0), lambda outputs, _: outputs.mean(), callbacks=[GeneratedImages()], steps=1)
    with pytest.raises(UsageError, match="the trainer generates nothing"):
        trainer.fit()
    assert SampleImages().count == 16


class TestTheShippedConfiguration:
    def test_left_after_a_step_it_ends_with_the_same_bits(
        self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        beacon = "callbacks={beacon: {}, generated_images: {every: 2}}"
        flambeau("train", "gan", *SHORT, beacon, "--run-dir", "whole")
        monkeypatch.setenv("PREEMPT_AT", "23")
        flambeau("train", "gan", *SHORT, beacon, "--run-dir", "left", expect=75)
        monkeypatch.delenv("PREEMPT_AT")
        flambeau("resume", "left")
        root = flambeau.project.root
        assert_same_runs(root / "whole", root / "left")
        assert "lr/generator" in (root / "whole" / "metrics.jsonl").read_text()

    def test_it_is_evaluated_and_generates(self, flambeau: InProcess, tmp_path: Path) -> None:
        """`predict` makes an image a sample, or one of each row of noise that it is given."""
        flambeau("train", "gan", *SHORT, "--run-dir", "run")
        answer = flambeau("evaluate", "run", "--split", "test", "--json")
        assert json.loads(answer.out)["scores"]["frechet_distance"] > 0
        flambeau("predict", "run", "--input", "test", "--output", "test.csv")
        with Path("test.csv").open() as file:
            assert len(list(csv.reader(file))) == 1 + 270
        np.save("noise.npy", np.random.default_rng(0).normal(size=(7, 32)).astype(np.float32))
        flambeau("predict", "run", "--input", "noise.npy", "--output", "images.npz")
        assert np.load("images.npz")["outputs"].shape == (7, 1, 8, 8)

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            (
                "optimizers.generator.parameters=[generatr.*]",
                "optimizers.generator.parameters: the pattern 'generatr.*'",
            ),
            ("optimizers.generator.parameters=['*']", "in the optimizers discriminator and generator"),
            ("optimizers.generator=null", "'generator.0.weight'"),
            ("optimizers.generator.lr=-1.0", "optimizers.generator: optimizer: Invalid learning rate"),
            (
                "optimizers.generator.groups=[{pattern: 'discriminator.*', lr: 1}]",
                "optimizers.generator: optimizer.groups",
            ),
            ("trainer.accumulate=2", "trainer.accumulate does not go with several optimizers"),
        ],
    )
    def test_optimizers_that_do_not_fit_the_model_are_told_of_before_training(
        self, flambeau: InProcess, override: str, message: str
    ) -> None:
        answer = flambeau("train", "gan", *SHORT, override, "--run-dir", "run", expect=2)
        assert message in answer.err
        assert not Path("run").exists()

    @pytest.mark.slow
    def test_its_images_are_near_the_real_ones(self, flambeau: InProcess) -> None:
        """An untrained generator is at 60, one that makes the mean image only at 33; `configs/gan.yaml` states 6.1."""
        flambeau("train", "gan", "--run-dir", "run")
        status = json.loads(Path("run/status.json").read_text())
        assert status["best"]["metric"] == "val/ema/frechet_distance"
        assert status["best"]["value"] < 9.0
