"""The language model as a task: from a configuration to a score, and to text."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.processes import together

import flambeau
from flambeau import Trainer
from flambeau.cli import main
from flambeau.criterions import TokenCrossEntropy
from flambeau.data.text import Text
from flambeau.metrics import BitsPerByte
from flambeau.models import GPT

SMALL = [
    "data.files=text.txt", "data.block_size=16", "data.batch_size=8", "model.width=16", "model.num_layers=2",
    "model.num_heads=2", "scheduler.warmup_steps=2", "callbacks.sample_text.count=8",
]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a text in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("".join(f"{n} and {n + 1} make {2 * n + 1}.\n" for n in range(300)))
    return tmp_path


def train(run: str, *arguments: str) -> Path:
    assert main(["train", "gpt", *SMALL, *arguments, "--run-dir", run]) == 0
    return Path(run)


def bigram_bits(train: np.ndarray[Any, Any], test: np.ndarray[Any, Any]) -> float:
    """Bits per byte of a model that knows the byte before: counts, smoothed towards those of single bytes.

    Witten and Bell (1991), method C.
    """
    single = (np.bincount(train, minlength=256) + 1.0) / (len(train) + 256)
    pairs = np.zeros((256, 256))
    np.add.at(pairs, (train[:-1], train[1:]), 1)
    seen, kinds = pairs.sum(1, keepdims=True), (pairs > 0).sum(1, keepdims=True)
    after = (pairs + np.maximum(kinds, 1) * single) / (seen + np.maximum(kinds, 1))
    return float(-np.log2(after[test[:-1], test[1:]]).mean())


@pytest.mark.slow
def test_the_shipped_configuration_is_a_bit_better_than_pairs_of_bytes() -> None:
    """2.83 bits a byte on the test part, where counts of pairs give 3.96 (Python 3.11)."""
    assert main(["train", "gpt", "trainer.test_at_end=true", "--run-dir", "run"]) == 0
    score = flambeau.load_run("run").metrics()[-1]["test/bits_per_byte"]
    data = Text()
    assert data.test is not None
    baseline = bigram_bits(*(part._cut[0].numpy() for part in (data.train, data.test)))
    assert score < 3.1
    assert score < baseline - 0.75


def test_a_run_that_was_left_goes_on_to_the_same_bits(capsys: pytest.CaptureFixture[str]) -> None:
    """Weights, scores and the text that is written, with dropout; sampling does not disturb the run."""
    options = ["model.dropout=0.2", "trainer.steps=5", "trainer.validate_every_steps=2", "checkpoint.every_steps=4"]
    whole = train("whole", *options)
    stop = ["callbacks={time_limit: {minutes: 1e-9}, sample_text: {prompt: 'def ', count: 8}}"]
    assert main(["train", "gpt", *SMALL[:-1], *options, *stop, "--run-dir", "run"]) == 75
    capsys.readouterr()
    for _ in range(4):
        assert main(["resume", "run"]) in (0, 75)
    text = capsys.readouterr().out
    assert json.loads(Path("run/status.json").read_text())["step"] == 5
    wanted = (whole / "log.txt").read_text().split("text written at step 5:\n")[1].split("\n")[0]
    assert f"text written at step 5:\n{wanted}" in text
    assert_same_weights(whole, Path("run"))


def assert_same_weights(one: Path, other: Path) -> None:
    from flambeau.checkpoint import Checkpoint

    first, second = (
        Checkpoint.open((run / "checkpoints" / "last").resolve()).load("model")["model"] for run in (one, other)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_sampling_text_does_not_change_the_run(folder: Path) -> None:
    """The same bits with and without."""
    options = ["model.dropout=0.2", "trainer.steps=6", "trainer.validate_every_steps=2"]
    with_text = train("with", *options)
    main(["train", "gpt", *SMALL[:-1], *options, "callbacks=null", "--run-dir", "without"])
    assert_same_weights(with_text, folder / "without")


def test_texts_are_written_to_the_log_at_validations() -> None:
    """They begin with the prompt."""
    run = train("run", "trainer.steps=4", "trainer.validate_every_steps=2", "callbacks.sample_text.prompt='7 and'")
    log = (run / "log.txt").read_text()
    for step in (2, 4):
        assert f"text written at step {step}:\n7 and" in log


def test_a_model_that_cannot_write_is_refused_before_the_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    """By the name of what it lacks."""
    options = ["callbacks={sample_text: {}}", "trainer.epochs=1", "--run-dir", "run"]
    assert main(["train", "synthetic", *options]) == 2
    assert "MLP has no method `generate`" in capsys.readouterr().err
    assert main(["train", "gpt", *SMALL, "callbacks.sample_text.prompt=''", "trainer.steps=1", "--run-dir", "two"]) == 2
    assert "prompt is empty" in capsys.readouterr().err


def test_a_trained_model_writes_in_three_lines() -> None:
    """As the page on text shows."""
    train("run", "trainer.steps=2")
    run = flambeau.load_run("run")
    model, data = run.model(), run.data()
    text = data.decode(model.generate(data.encode("12 and")[None], 5, temperature=0)[0])
    assert text.startswith("12 and")
    assert len(text) >= len("12 and") + 1


@pytest.mark.parametrize("vocabulary", ["bytes", "characters"])
def test_scores_of_both_vocabularies_are_of_the_same_bytes(vocabulary: str) -> None:
    """bits_per_byte is the loss in bits over the bytes of the targets."""
    run = train("run", "trainer.steps=2", f"data.vocabulary={vocabulary}")
    record = flambeau.load_run(run).metrics()[-1]
    assert record["val/perplexity"] == pytest.approx(math.exp(record["val/loss"]), rel=1e-6)
    assert record["val/bits_per_byte"] == pytest.approx(record["val/loss"] / math.log(2), rel=1e-6)  # all is ASCII


class TestTiedWeights:
    def test_they_are_one_after_a_resume_and_an_export(self) -> None:
        """One matrix in the trained, the resumed and the loaded model; the exported file has it under both names."""
        train("run", "trainer.steps=2")
        assert main(["resume", "run", "trainer.steps=4", "--force"]) == 0
        model = flambeau.load_model("run", checkpoint="last")
        assert isinstance(model, GPT)
        assert model.head.weight is model.tokens.weight
        assert (
            main(["export", "run", "--format", "safetensors", "--output", "gpt.safetensors", "--checkpoint", "last"])
            == 0
        )
        from safetensors.torch import load_file

        weights = load_file("gpt.safetensors")
        assert torch.equal(weights["head.weight"], weights["tokens.weight"])
        assert torch.equal(weights["head.weight"], model.head.weight)

    def test_they_are_one_in_the_average_too(self) -> None:
        """Two averages would drift apart from the first step on."""
        train("run", "trainer.steps=3", "trainer.ema={decay: 0.5}", "trainer.monitor=val/ema/loss")
        model = flambeau.load_model("run")
        assert isinstance(model, GPT)
        assert model.head.weight is model.tokens.weight


class Padded(torch.utils.data.Dataset[Any]):
    """Windows of which from 1 to all targets count."""

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> Any:
        generator = torch.Generator().manual_seed(index)
        tokens = torch.randint(13, (9,), generator=generator)
        length = 1 + int(torch.randint(8, (), generator=generator))
        return tokens[:-1], tokens[1:].masked_fill(torch.arange(8) >= length, -100)


def train_padded(accumulate: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    torch.manual_seed(0)
    model = GPT(vocab_size=13, block_size=8, num_layers=2, num_heads=2, width=8, positions="rotary")
    trainer = Trainer(
        model, Padded(), TokenCrossEntropy(ignore_index=-100), torch.optim.SGD(model.parameters(), lr=0.3),
        val_data=Padded(), metrics={"bits": BitsPerByte(ignore_index=-100)}, steps=6, batch_size=7, precision="fp64",
        accumulate=accumulate, device="cpu", progress=False,
    )  # fmt: skip
    trainer.fit()
    return {name: value.clone() for name, value in model.state_dict().items()}, trainer.evaluate()


def test_two_processes_and_accumulation_are_the_mathematics_of_one() -> None:
    """With targets of ragged length each token counts once, wherever it lies."""
    expected, scores = train_padded(1)
    assert scores["bits"] == pytest.approx(scores["loss"] / math.log(2), rel=1e-12)
    for found, others in [train_padded(3), *together(2, train_padded, 2)]:
        for name, value in expected.items():
            assert (found[name] - value).norm() <= 1e-10 * value.norm().clamp_min(1e-300), name
        assert others["bits"] == pytest.approx(scores["bits"], rel=1e-10)
