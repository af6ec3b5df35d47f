"""Sequence classification as a task: samples of different lengths, from a configuration to a score."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import together
from torch import nn

import flambeau
from flambeau import Trainer
from flambeau.cli import main
from flambeau.data.sequences import Sequences
from flambeau.errors import UsageError
from flambeau.models import GRUClassifier


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_shipped_configuration_knows_the_order() -> None:
    """Over 99 % of the test sequences, where guessing gives 1 in 6."""
    assert main(["train", "sequences", "trainer.test_at_end=true", "--run-dir", "run"]) == 0
    assert flambeau.load_run("run").metrics()[-1]["test/accuracy"] > 0.99


class TestData:
    def test_only_the_order_tells_the_class(self) -> None:
        """Each sequence has each marker once; classes are of one size; the markers stand in the order of the class."""
        data = Sequences(size=600, num_markers=3, seed=1)
        assert data.num_classes == math.factorial(3)
        orders: dict[int, set[tuple[int, ...]]] = {}
        for part in (data.train, data.val, data.test):
            assert part is not None
            for sample in (part[index] for index in range(len(part))):
                tokens = sample["inputs"]["tokens"]
                assert sample["inputs"]["lengths"] == len(tokens)
                assert 5 <= len(tokens) <= 40
                assert 1 <= tokens.min() <= tokens.max() < data.vocab_size
                orders.setdefault(sample["targets"], set()).add(tuple(tokens[tokens <= 3].tolist()))
        assert len(orders) == 6
        assert all(len(found) == 1 and len(next(iter(found))) == 3 for found in orders.values())
        assert data.train is not None
        assert data.train.classes.bincount().tolist() == [70] * 6

    def test_it_is_a_function_of_the_seed(self) -> None:
        one, same, other = (Sequences(size=60, seed=seed).train for seed in (3, 3, 4))
        assert one is not None and same is not None and other is not None
        assert all(torch.equal(a, b) for a, b in zip(one.sequences, same.sequences, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(one.sequences, other.sequences, strict=True))

    def test_markers_that_do_not_fit_are_refused(self) -> None:
        with pytest.raises(UsageError, match="4 markers do not fit into 3 to 40 tokens"):
            Sequences(num_markers=4, min_length=3)


def train_ragged(accumulate: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    data = Sequences(size=90, seed=2)
    torch.manual_seed(0)
    model = GRUClassifier(data.vocab_size, data.num_classes, width=4, hidden_size=5, bidirectional=True)
    trainer = Trainer(
        model, data.train, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.3), val_data=data.val,
        collate=data.collate, steps=6, batch_size=7, precision="fp64", accumulate=accumulate, device="cpu",
        progress=False,
    )  # fmt: skip
    trainer.fit()
    return {name: value.clone() for name, value in model.state_dict().items()}, trainer.evaluate()


def test_two_processes_and_accumulation_are_the_mathematics_of_one() -> None:
    """Though each pads to another length."""
    expected, scores = train_ragged(1)
    for found, others in [train_ragged(3), *together(2, train_ragged, 2)]:
        for name, value in expected.items():
            assert (found[name] - value).norm() <= 1e-10 * value.norm().clamp_min(1e-300), name
        assert others["loss"] == pytest.approx(scores["loss"], rel=1e-10)


SIZES = "vocab_size: '${data.vocab_size}', num_classes: '${data.num_classes}'"


@pytest.mark.parametrize("model", ["gru_classifier", "transformer_classifier"])
def test_both_models_train_evaluate_and_predict(model: str) -> None:
    """With workers and micro-batches; a prediction for each sequence, in order."""
    options: list[Any] = [f"model={{name: {model}, {SIZES}}}", "data.size=200", "trainer.epochs=1", "data.workers=1"]
    assert main(["train", "sequences", *options, "trainer.micro_batch=20", "--run-dir", "run"]) == 0
    assert main(["evaluate", "run", "--split", "test"]) == 0
    assert main(["predict", "run", "--input", "test", "--output", "out.csv"]) == 0
    assert len(Path("out.csv").read_text().strip().split("\n")) == 1 + 30
