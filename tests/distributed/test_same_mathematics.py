"""One process, several, and gradient accumulation: the same samples, the same units, the same weights."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from support.processes import together
from torch import nn
from torch.utils.data import TensorDataset

from flambeau import Trainer
from flambeau.data import Batch

TOLERANCE = 1e-10
"""Largest relative difference of weights in float64: what another order of summation makes."""


def samples(size: int, *, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, 6, generator=generator)
    return TensorDataset(inputs, torch.randint(0, 4, (size,), generator=generator))


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))


class Recording(Trainer):
    """Keeps the ids of the samples of each step."""

    def advance(self, batch: Batch) -> None:
        self.ids = [*getattr(self, "ids", []), batch.ids.tolist()]
        super().advance(batch)


def train(size: int, options: dict[str, Any], make: Any = network, criterion: Any = nn.CrossEntropyLoss) -> Any:
    """Weights after a run, the ids of this process's samples, and the last training loss."""
    model = make()
    trainer = Recording(
        model,
        samples(size),
        criterion(),
        torch.optim.AdamW(model.parameters(), lr=1e-2),
        device="cpu",
        **{"epochs": 3, "batch_size": 8, "precision": "fp64", "progress": False, "log_every": 5, **options},
    )
    trainer.fit()
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    return weights, trainer.ids, trainer.recorder.history


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        difference = (found[name].double() - value.double()).norm() / value.double().norm().clamp_min(1e-300)
        assert difference <= TOLERANCE, f"{name} differs by {difference:.3g}"


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_weights_are_those_of_one_process(ranks: int, accumulate: int) -> None:
    """37 samples in batches of 8: the last batch of an epoch has 5, of which a share is cut into parts of none."""
    expected, ids, history = train(37, {})
    results = together(ranks, train, 37, {"accumulate": accumulate, "clip_norm": None})
    for weights, _, records in results:
        assert_close(weights, expected)
        assert [r["train/loss"] for r in records] == pytest.approx([r["train/loss"] for r in history], rel=1e-10)
    shares = zip(*(shares for _, shares, _ in results), strict=True)
    assert [list(np.concatenate(share)) for share in shares] == ids


def ragged(size: int) -> TensorDataset:
    """Sequences of which most targets are padding: from none to all 5 of a sample count."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(size, 5, 6, generator=generator)
    targets = torch.randint(0, 4, (size, 5), generator=generator)
    lengths = torch.randint(0, 6, (size, 1), generator=generator)
    return TensorDataset(inputs, targets.masked_fill(torch.arange(5) >= lengths, -100))


class Tokens(nn.CrossEntropyLoss):
    """Cross entropy of (N, T, C) against (N, T)."""

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return super().forward(outputs.flatten(0, 1), targets.flatten())


class TestUnits:
    """What a loss is a mean over is counted over all processes."""

    @staticmethod
    def run(options: dict[str, Any], criterion: Any, data: Any) -> dict[str, torch.Tensor]:
        model = network()
        trainer = Trainer(
            model, data, criterion, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), device="cpu", steps=15,
            precision="fp64", batch_size=7, progress=False, **options,
        )  # fmt: skip
        trainer.fit()
        return {name: value.clone() for name, value in model.state_dict().items()}

    @pytest.mark.parametrize("ranks", [2, 3])
    @pytest.mark.parametrize(
        ("criterion", "data"),
        [
            (Tokens(), ragged(23)),
            (Tokens(label_smoothing=0.1), ragged(23)),
            (nn.CrossEntropyLoss(weight=torch.tensor([0.1, 1.0, 5.0, 2.0])), samples(23)),
            (nn.CrossEntropyLoss(reduction="sum"), samples(23)),
        ],
        ids=["padded sequences", "smoothed labels", "class weights", "sums"],
    )
    def test_ragged_targets_weigh_as_in_one_process(
        self, ranks: int, criterion: nn.Module, data: TensorDataset
    ) -> None:
        expected = self.run({}, criterion, data)
        for accumulate in (1, 2):
            for weights in together(ranks, self.run, {"accumulate": accumulate}, criterion, data):
                assert_close(weights, expected)

    def test_equal_weights_for_all_processes_would_show(self) -> None:
        """The defect that this guards against: the mean of the processes' means is another number."""
        data = ragged(23)
        losses = [
            Tokens()(torch.randn(4, 5, 4, generator=torch.manual_seed(0)), data.tensors[1][at : at + 4])
            for at in (0, 4)
        ]
        counts = [(data.tensors[1][at : at + 4] != -100).sum() for at in (0, 4)]
        whole = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
        assert abs(sum(losses) / 2 - whole) > 1e-3


def evaluate(size: int, batch: int) -> tuple[dict[str, float], list[int]]:
    """The scores of a fixed model, and the ids that this process has evaluated."""
    from torchmetrics.classification import MulticlassAUROC, MulticlassConfusionMatrix, MulticlassF1Score

    from flambeau.metrics import Accuracy, MeanSquaredError

    seen: list[int] = []

    class Own:
        """No base class, and no state that anybody could add up."""

        def reset(self) -> None:
            self.rows: list[torch.Tensor] = []

        def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
            self.rows.append(outputs[:, 0] * targets)

        def compute(self) -> torch.Tensor:
            return torch.cat(self.rows).median()

    class Probability(MeanSquaredError):
        def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
            super().update(outputs.softmax(1)[:, 0], targets.double())

    class Watching(Trainer):
        def evaluation_step(self, model: nn.Module, batch: Batch) -> Any:
            seen.extend(batch.ids.tolist())
            return super().evaluation_step(model, batch)

    model = network()
    trainer = Watching(
        model, samples(8), nn.CrossEntropyLoss(), steps=1, device="cpu", eval_batch_size=batch, progress=False,
        metrics={
            "accuracy": Accuracy(),
            "f1": MulticlassF1Score(4, average="macro"),
            "auroc": MulticlassAUROC(4),
            "confusion": MulticlassConfusionMatrix(4),
            "squared": Probability(),
            "median": Own(),
        },
    )  # fmt: skip
    return trainer.evaluate(samples(size, seed=5)), seen


@pytest.mark.parametrize(("size", "batch"), [(97, 16), (97, 64), (1797, 50)])
def test_evaluation_counts_each_sample_once_and_gives_the_same_bits(size: int, batch: int) -> None:
    """Means, metrics that are no means, and a metric of one's own that knows nothing of processes."""
    expected, ids = evaluate(size, batch)
    assert ids == list(range(size))
    for ranks in (2, 3, 4):
        results = together(ranks, evaluate, size, batch)
        assert sorted(index for _, seen in results for index in seen) == ids
        for scores, _ in results:
            assert scores == expected


class Interrupted(Recording):
    """Leaves after some steps as if a signal had come."""

    leave_after = 10**9

    def update(self, batch: Batch) -> None:
        super().update(batch)
        if self.state.step + 1 == self.leave_after:
            self.preempt("a test")


def train_part(folder: str, leave_after: int | None, options: dict[str, Any]) -> Any:
    """Go on in `folder` with the run that may have begun there; the ids of this process's samples and the weights."""
    model = network()
    trainer = Interrupted(
        model, samples(37), nn.CrossEntropyLoss(), torch.optim.AdamW(model.parameters(), lr=1e-2), run_dir=folder,
        device="cpu", epochs=6, batch_size=8, precision="fp64", progress=False, log_every=7, dry_batch=False,
        trackers=(), **options,
    )  # fmt: skip
    trainer.leave_after = leave_after or 10**9
    trainer.fit(resume=True)
    return getattr(trainer, "ids", []), {name: value.clone() for name, value in model.state_dict().items()}


class TestResume:
    def test_at_another_number_of_processes_goes_on_with_the_same_samples(self, tmp_path: Any) -> None:
        """2, then 3, then 1: nothing is repeated or lost, and the weights are those of one process from end to end."""
        whole_ids, expected = train_part(str(tmp_path / "whole"), None, {})
        ids: list[list[int]] = []
        for ranks, leave_after in ((2, 4), (3, 11), (1, None)):
            results = together(ranks, train_part, str(tmp_path / "run"), leave_after, {})
            ids += [
                list(chain.from_iterable(shares)) for shares in zip(*(shares for shares, _ in results), strict=True)
            ]
        assert ids == whole_ids
        for _, weights in results:
            assert_close(weights, expected)

    @pytest.mark.parametrize("ranks", [2, 3])
    def test_at_the_same_number_gives_the_same_bits(self, tmp_path: Any, ranks: int) -> None:
        """Weights, and the record with its means over steps on both sides of the interruption.

        With three processes the order of summation depends on the layout of torch's buckets.
        """
        expected = together(ranks, train_part, str(tmp_path / "whole"), None, {})
        together(ranks, train_part, str(tmp_path / "run"), 9, {})
        found = together(ranks, train_part, str(tmp_path / "run"), None, {})
        for (_, weights), (_, whole) in zip(found, expected, strict=True):
            assert all(torch.equal(weights[name], whole[name]) for name in whole)
        record, whole_record = ((tmp_path / run / "metrics.jsonl").read_bytes() for run in ("run", "whole"))
        assert record == whole_record


class Adversaries(nn.Module):
    """Two models in one, called part by part: torch's DistributedDataParallel would not see it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.one, self.other = nn.Linear(6, 6), nn.Linear(6, 1)


class TwoOptimizers(Trainer):
    """Alternates between two optimizers."""

    def __init__(self, model: Adversaries, *arguments: Any, **options: Any) -> None:
        super().__init__(model, *arguments, optimizer=torch.optim.SGD(model.other.parameters(), lr=0.1), **options)
        self.second = torch.optim.SGD(model.one.parameters(), lr=0.05)

    def update(self, batch: Batch) -> None:
        made = self.model.one(batch.inputs)
        self.backward((self.model.other(made.detach()).square() + self.model.other(batch.inputs)).mean())
        self.step()
        self.backward(self.model.other(self.model.one(batch.inputs)).mean())
        if self.replicas is not None:
            self.replicas.finish()
        self.second.step()
        self.clear_gradients()


class TestOwnTrainers:
    @staticmethod
    def alternate() -> dict[str, torch.Tensor]:
        model = Adversaries()
        trainer = TwoOptimizers(
            model, samples(21), device="cpu", steps=9, batch_size=5, precision="fp64", progress=False
        )
        trainer.fit()
        return {name: value.clone() for name, value in model.state_dict().items()}

    def test_an_update_of_ones_own_that_calls_parts_of_the_model_exchanges_all_gradients(self) -> None:
        """As for a GAN; each process's loss counts by its samples."""
        expected = self.alternate()
        for weights in together(3, self.alternate):
            assert_close(weights, expected)

    @staticmethod
    def step_through_the_model() -> dict[str, torch.Tensor]:
        class Own(Trainer):
            def training_step(self, batch: Batch) -> torch.Tensor:
                return self.compute_loss(self.model(batch.inputs), batch)

        model = network()
        trainer = Own(
            model, samples(21), nn.CrossEntropyLoss(), steps=9, device="cpu", batch_size=5, precision="fp64",
            progress=False,
        )  # fmt: skip
        trainer.fit()
        return {name: value.clone() for name, value in model.state_dict().items()}

    def test_a_step_of_ones_own_that_calls_the_bare_model_exchanges_all_gradients(self) -> None:
        expected = self.step_through_the_model()
        for weights in together(2, self.step_through_the_model):
            assert_close(weights, expected)


def normalised() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


@pytest.mark.parametrize("ranks", [2, 3])
def test_batch_norm_is_over_the_global_batch(ranks: int) -> None:
    """The last batch of an epoch has 2 samples, so that of three processes one has none."""
    expected, _, _ = train(26, {}, normalised)
    for weights, _, _ in together(ranks, train, 26, {}, normalised):
        assert_close(weights, expected)
