"""`trainer.micro_batch`: parts of a batch by their size, or as large as real memory allows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import little_memory
import pytest
import torch
from little_memory import BATCH, REST, adam, deep, state_of, train
from support.processes import together
from support.projects import ROOT, environment
from support.states import assert_same
from support.tasks import make_trainer, points
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop

from flambeau import Batch, Trainer
from flambeau.config.sections import FsdpSettings, TrainerSettings
from flambeau.errors import FlambeauError, UsageError
from flambeau.runtime.world import current_world
from flambeau.training.micro_batch import check_micro_batch, state_per_weight


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs in little memory have left what they did."""
    folder = tmp_path_factory.mktemp("little-memory")
    # Each tensor gets memory of its own, which is given back at once.
    env = environment({"MALLOC_MMAP_THRESHOLD_": "65536"})
    env["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"
    done = subprocess.run(
        [sys.executable, little_memory.__file__, str(folder)], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "out.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, list[Any]]:
    """What came of them in each process."""
    found: dict[str, list[Any]] = torch.load(folder / "found.pt")
    return found


@pytest.fixture(scope="module")
def whole() -> dict[str, torch.Tensor]:
    """The weights after a run that takes each batch in one."""
    return train({"dry_batch": False})[1]


class TestAuto:
    @pytest.mark.slow
    def test_halves_are_taken_where_the_whole_batch_does_not_fit(
        self, folder: Path, runs: dict[str, Any], whole: dict[str, torch.Tensor]
    ) -> None:
        assert "can't allocate memory" in runs["too much"][0]
        [(parts, found)] = runs["halves"]
        assert parts == 2
        said = (folder / "out.txt").read_text()
        assert "micro-batches of 512 samples fit into memory: 2 a step\n" in said
        assert_same(found, train({"accumulate": 2})[1])
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-6)

    @pytest.mark.slow
    def test_all_processes_take_what_the_one_with_the_least_memory_can(
        self, runs: dict[str, Any], whole: dict[str, torch.Tensor]
    ) -> None:
        """A share of 512 samples fits into the one, and half of it into the other."""
        assert [parts for parts, _ in runs["in several processes"]] == [2, 2]
        for _, found in runs["in several processes"]:
            torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-6)

    def test_where_memory_does_for_all_the_run_has_the_bits_of_one_without_it(
        self, whole: dict[str, torch.Tensor]
    ) -> None:
        parts, found = train({"micro_batch": "auto"})
        assert parts == 1
        assert_same(found, whole)

    @pytest.mark.slow
    def test_a_run_that_goes_on_keeps_the_parts_that_it_began_with(self, folder: Path, runs: dict[str, Any]) -> None:
        options: dict[str, Any] = {
            "train_data": points(BATCH + REST),
            "batch_size": BATCH,
            "optimizer": adam,
            "steps": 4,
        }
        resumed = make_trainer(deep(), run_dir=folder / "run", micro_batch="auto", **options)
        resumed.fit(resume=True)
        assert resumed.accumulate == 2 and resumed.state.step == 4
        without_end = make_trainer(deep(), accumulate=2, **options)
        without_end.fit()
        assert_same(state_of(resumed), state_of(without_end))

    @pytest.mark.slow
    def test_a_run_that_begins_with_the_small_batch_of_an_epochs_end_finds_what_fits_the_others(
        self, runs: dict[str, Any]
    ) -> None:
        assert runs["at the end of an epoch"] == [(100, 512)]

    def test_memory_for_not_even_one_sample_is_an_error_that_says_so(self) -> None:
        with pytest.raises(UsageError, match=r"^not even one sample fits into memory: .*can't allocate memory"):
            make_trainer(Hungry(4, 3), micro_batch="auto").fit()

    def test_the_error_of_one_process_ends_all_of_them(self) -> None:
        """Nobody waits for a process that failed in its trial."""
        kind, other = together(2, fail_in_one)
        assert kind == ["ValueError", "the criterion's own", "this was a trial of trainer.micro_batch before step 1"]
        assert other[:2] == [
            "FlambeauError",
            "process 0 failed in the trial of trainer.micro_batch: ValueError: the criterion's own",
        ]

    @pytest.mark.slow
    def test_the_optimizers_state_has_its_place(self, runs: dict[str, Any]) -> None:
        """24 MB of weights, and two moments of them: there is room for all in the first step, and not in the second."""
        assert runs["heavy"] == [("failed after step 1", "trained")]


class Hungry(nn.Linear):
    """Wants more memory than there is anywhere."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs) + torch.zeros(1 << 55)[0]


def fail_in_one() -> list[str]:
    rank = current_world().rank

    class Failing(nn.CrossEntropyLoss):
        def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            if rank == 0:
                raise ValueError("the criterion's own")
            return super().forward(outputs, targets)

    with pytest.raises((ValueError, FlambeauError)) as caught:
        make_trainer(criterion=Failing(), micro_batch="auto").fit()
    notes = getattr(caught.value, "__notes__", [])
    return [type(caught.value).__name__, str(caught.value), *(note.split(":")[0] for note in notes)]


class TestSize:
    @pytest.mark.parametrize(("size", "sizes"), [(8, [8]), (100, [8]), (3, [3, 3, 2]), (1, [1] * 8)])
    def test_a_batch_is_taken_in_parts_of_at_most_this_size(self, size: int, sizes: list[int]) -> None:
        seen = []

        class Counting(nn.CrossEntropyLoss):
            def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
                seen.append(len(targets))
                return super().forward(outputs, targets)

        make_trainer(criterion=Counting(), micro_batch=size, steps=1, dry_batch=False).fit()
        assert seen == sizes

    def test_size_and_number_of_parts_are_not_given_both(self) -> None:
        with pytest.raises(UsageError, match="micro_batch is 4 and accumulate is 2"):
            make_trainer(micro_batch=4, accumulate=2)

    def test_an_update_of_ones_own_cannot_be_tried(self) -> None:
        class Own(Trainer):
            def update(self, batch: Batch) -> None:
                super().update(batch)

        with pytest.raises(UsageError, match="auto needs the engine's own update"):
            make_trainer(kind=Own, micro_batch="auto")

    def test_a_model_in_shards_cannot_be_tried_by_one_process(self) -> None:
        with pytest.raises(UsageError, match="a model in shards needs all of them"):
            check_micro_batch(TrainerSettings(fsdp=FsdpSettings(), micro_batch="auto"), own_update=False)


@pytest.mark.parametrize(
    ("kind", "options", "bytes_per_byte"),
    [
        (SGD, {}, 0),
        (SGD, {"momentum": 0.9}, 1),
        (RMSprop, {}, 1),
        (Adam, {}, 2),
        (AdamW, {"amsgrad": True}, 3),
        (torch.optim.LBFGS, {}, 2),  # wants a closure: as for Adam
    ],
)
def test_the_state_that_an_optimizer_keeps_is_measured(kind: Any, options: Any, bytes_per_byte: float) -> None:
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    optimizer = kind([weight], lr=0.1, **options)
    assert state_per_weight(optimizer) == bytes_per_byte
    assert not optimizer.state and torch.equal(weight, torch.ones(3))
