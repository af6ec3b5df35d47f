"""Random transforms of samples and batches are the same on several processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.projects import CONFIG, Project
from support.states import final_state

TRANSFORMS = """
train_transforms: {noise: {name: gaussian_noise, std: 0.2}}
train_batch_transforms:
  noise: {name: gaussian_noise, std: 0.2}
  mixup: {num_classes: "${data.num_classes}", alpha: 1.0}
"""


@pytest.mark.slow
def test_two_processes_train_on_the_batches_of_one(tmp_path: Path) -> None:
    """To the rounding of sums in float64: noise, and the partners and shares of mixup, are functions of the sample."""
    config = CONFIG.replace("callbacks: {tally: {}, beacon: {}}\n", "") + TRANSFORMS
    project = Project.write(tmp_path / "project", config=config)
    options = ("model.dropout=0", "trainer.precision=fp64", "trainer.epochs=2", "data.limit=48")
    project.run("train", "tiny", "--run-dir", "one", *options)
    project.run("train", "tiny", "--run-dir", "two", "-d", "cpu", "--processes", "2", *options)
    one, two = (final_state(project.root / run)["model"] for run in ("one", "two"))
    for name, weight in one.items():
        assert torch.allclose(weight.double(), two[name].double(), rtol=1e-6, atol=1e-7), name
