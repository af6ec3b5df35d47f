"""Commands of `flambeau` in the working directory, in this process, and what they leave there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flambeau.cli import main


class Runs:
    """Commands in an empty folder, and what they leave there."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def train(self, config: str, *settings: str, run: str = "run") -> Path:
        """Train a configuration to its end; its run folder."""
        self(*("train", config, *settings, "--run-dir", run))
        return Path(run)

    def evaluate(self, split: str, *options: str, run: str = "run") -> dict[str, float]:
        """The scores of the best checkpoint, as the run's folder keeps them."""
        self("evaluate", run, "--split", split, *options)
        (kept,) = Path(run, "evaluations").glob(f"{split}-step-*.json")
        scores: dict[str, float] = json.loads(kept.read_text())["scores"]
        kept.unlink()
        return scores

    def predict(self, data: str, run: str = "run") -> np.ndarray:
        """The outputs of the best checkpoint for a split or a file of inputs."""
        self("predict", run, "--input", data, "--output", "outputs.npz")
        return np.load("outputs.npz")["outputs"]

    def __call__(self, *arguments: str) -> str:
        self._capsys.readouterr()
        assert main([*arguments]) == 0, self._capsys.readouterr().err
        return self._capsys.readouterr().out
