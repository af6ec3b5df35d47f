"""Image classification, the default task: the shipped configurations reach their stated scores on the digits."""

from __future__ import annotations

import pytest
from support.commands import Runs


@pytest.mark.slow
@pytest.mark.parametrize(("config", "least"), [("mlp", 0.96), ("lenet", 0.97)])
def test_digits_are_recognised(runs: Runs, config: str, least: float) -> None:
    """On the test images, by the checkpoint that was best on the validation images."""
    runs.train(config, "trainer.progress=false")
    assert runs.evaluate("test")["accuracy"] >= least
