"""Image classification, the default task: the perceptron reaches its stated score on the digits.

LeNet's, of the first command of a newcomer, is in `tests/cli/test_train_command.py`.
"""

from __future__ import annotations

import pytest
from support.commands import Runs


@pytest.mark.slow
def test_digits_are_recognised(runs: Runs) -> None:
    """On the test images, by the checkpoint that was best on the validation images."""
    runs.train("mlp", "trainer.progress=false")
    assert runs.evaluate("test")["accuracy"] >= 0.96
