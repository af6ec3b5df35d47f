"""`flambeau evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.projects import InProcess

from flambeau.run_folder import read_metrics


@pytest.fixture
def run(flambeau: InProcess) -> Path:
    flambeau("train", "tiny", "--run-dir", "run", "trainer.test_at_end=true", "checkpoint.keep_last=9")
    return flambeau.project.root / "run"


@pytest.mark.usefixtures("run")
class TestScores:
    def test_the_best_checkpoint_has_the_score_that_training_saw(self, flambeau: InProcess, run: Path) -> None:
        result = json.loads(flambeau("evaluate", "run", "--json").out)
        best = json.loads((run / "status.json").read_text())["best"]
        assert (result["split"], result["step"], result["samples"]) == ("val", best["step"], 31)
        assert result["scores"]["accuracy"] == best["value"]

    def test_every_checkpoint_has_the_scores_of_its_step(self, flambeau: InProcess, run: Path) -> None:
        for record in read_metrics(run / "metrics.jsonl"):
            if "val/loss" in record:
                result = json.loads(flambeau("evaluate", "run", "--checkpoint", str(record["step"]), "--json").out)
                assert result["scores"]["loss"] == record["val/loss"]

    def test_the_test_split_has_the_scores_of_the_test_at_the_end(self, flambeau: InProcess, run: Path) -> None:
        tested = read_metrics(run / "metrics.jsonl")[-1]
        result = json.loads(flambeau("evaluate", "run", "--split", "test", "--json").out)
        assert result["samples"] == 29
        assert result["scores"] == {name.removeprefix("test/"): tested[name] for name in tested if "test/" in name}

    def test_last_and_train_can_be_asked_for(self, flambeau: InProcess) -> None:
        result = json.loads(flambeau("evaluate", "run", "--split", "train", "--checkpoint", "last", "--json").out)
        assert (result["step"], result["samples"]) == (48, 92)

    def test_it_is_written_beside_the_run_and_shown_to_people(self, flambeau: InProcess, run: Path) -> None:
        answer = flambeau("evaluate", "run", "--split", "test", "--checkpoint", "last")
        assert "test: 29 samples, checkpoint of step 48" in answer.out
        assert "accuracy" in answer.out
        written = json.loads((run / "evaluations/test-step-00000048.json").read_text())
        assert written["scores"].keys() == {"loss", "accuracy"}

    def test_a_missing_checkpoint_or_split_is_told(self, flambeau: InProcess) -> None:
        assert "steps that are there: 12, 24, 36, 48" in flambeau("evaluate", "run", "--checkpoint", "7", expect=1).err
        assert "use best, last or a step" in flambeau("evaluate", "run", "--checkpoint", "bets", expect=2).err


def test_data_without_the_split_are_told(flambeau: InProcess) -> None:
    flambeau("train", "mlp", "data.test_fraction=0", "trainer.epochs=1", "tracking=[]", "--run-dir", "run")
    assert "has no test split" in flambeau("evaluate", "run", "--split", "test", expect=2).err


def test_data_without_a_length_are_evaluated(flambeau: InProcess) -> None:
    parts = next(flambeau.project.root.glob("parts_*.py"))
    parts.write_text(
        parts.read_text()
        + '''
class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([(torch.ones(6), 0)] * 10)


@register.data("streams")
class Streams(DataModule):
    """Streams."""

    num_classes: int = 3

    def __init__(self) -> None:
        self.train = self.val = Stream()
'''
    )
    flambeau("train", "tiny", "data.name=streams", "data.val_is_train=true", "trainer={steps: 4}", "--run-dir", "run")
    answer = flambeau("evaluate", "run")
    assert "loss" in answer.out
    flambeau("predict", "run", "--input", "val", "--output", "out.csv")
