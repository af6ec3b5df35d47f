"""Numbers that are not finite: found, named, and never in a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tasks import linear, make_trainer, points, sgd, weights
from torch import nn

from flambeau import Callback, Trainer
from flambeau.config.sections import EmaSettings
from flambeau.training.guard import NonFiniteError

BAD = 10
"""The sample that is spoiled: in the second batch of 8."""


def spoiled(value: float = math.nan) -> Any:
    data = points(24)
    data.tensors[0][BAD, 1] = value
    return data


class Net(nn.Module):
    """A layer whose activation can be made to fail for large inputs, and one behind it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.root = Root()
        self.last = nn.Linear(4, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.root(self.first(inputs)))


class Root(nn.Module):
    """NaN for anything large."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.where(inputs.abs() > 1e3, torch.nan, inputs)


class BadGradient(torch.autograd.Function):
    """The identity, whose gradient is NaN in the second batch; a dry batch before the run would count."""

    calls = 0

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        BadGradient.calls += 1
        return gradient * (math.nan if BadGradient.calls == 2 else 1.0)


class WithBadGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()
        BadGradient.calls = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return BadGradient.apply(self.layer(inputs))  # type: ignore[no-any-return,no-untyped-call]


def failure(trainer: Trainer) -> str:
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit()
    return str(caught.value)


class TestStop:
    def test_it_names_the_input_and_its_samples(self) -> None:
        message = failure(make_trainer(train_data=spoiled()))
        assert "the loss of step 2" in message
        assert "the input holds NaN" in message
        assert "samples 8, 9, 10, 11, 12, 13, 14, 15" in message

    def test_it_names_the_part_of_an_accumulated_batch(self) -> None:
        message = failure(make_trainer(train_data=spoiled(), accumulate=4))
        assert "(samples 10, 11)" in message

    def test_it_names_infinite_inputs_as_such(self) -> None:
        assert "the input holds infinite values" in failure(make_trainer(train_data=spoiled(math.inf)))

    def test_it_names_the_target(self) -> None:
        data = torch.utils.data.TensorDataset(torch.randn(24, 4), torch.randn(24, 3))
        data.tensors[1][BAD] = math.nan
        message = failure(make_trainer(train_data=data, criterion=nn.MSELoss()))
        assert "the target holds NaN" in message
        assert str(BAD) in message

    def test_it_names_the_part_of_a_nested_input(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = linear()

            def forward(self, inputs: Any) -> torch.Tensor:
                return self.layer(inputs["points"]) + inputs["offset"][:, None]

        samples = [
            {"inputs": {"points": torch.ones(4), "offset": math.nan if index == BAD else 0.0}, "targets": index % 3}
            for index in range(24)
        ]
        assert "the input.offset holds NaN" in failure(make_trainer(Net(), samples))

    @pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_it_names_the_first_module_whose_activation_fails(self, compiled: bool) -> None:
        message = failure(make_trainer(Net(), spoiled(1e9), compile=compiled))
        assert "the first activation that fails is of module 'root' (Root)" in message
        assert str(BAD) in message

    def test_it_names_the_criterion(self) -> None:
        def criterion(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return (outputs - outputs).sum() / 0.0

        assert "the criterion itself gave it" in failure(make_trainer(criterion=criterion))

    def test_it_names_a_weight_that_an_update_spoiled(self) -> None:
        """And the samples of the update before, whose gradient did it."""
        message = failure(make_trainer(WithBadGradient(), points(24), dry_batch=False))
        assert "the loss of step 3" in message
        assert "'layer.weight'" in message
        assert "samples 8, 9, 10, 11, 12, 13, 14, 15" in message

    def test_with_clipping_it_names_the_gradient_before_any_harm_is_done(self) -> None:
        model = WithBadGradient()
        message = failure(make_trainer(model, points(24), clip_norm=1.0, dry_batch=False))
        assert "step 2" in message
        assert "the gradient of 'layer.bias' holds NaN" in message
        assert torch.isfinite(weights(model)).all()

    def test_a_gradient_that_fails_in_the_last_step_does_not_go_unnoticed(self) -> None:
        """There is no further loss to see it by."""
        message = failure(make_trainer(WithBadGradient(), points(16)))
        assert "layer.weight" in message

    def test_an_infinite_buffer_is_not_blamed(self) -> None:
        """Masks of attention hold infinite values by design."""
        model = Net()
        model.register_buffer("mask", torch.full((3,), -math.inf))
        assert "module 'root'" in failure(make_trainer(model, spoiled(1e9)))

    def test_the_run_is_marked_as_failed_with_the_reason(self, tmp_path: Path) -> None:
        trainer = make_trainer(train_data=spoiled(), run_dir=tmp_path / "run")
        failure(trainer)
        assert trainer.run_folder is not None
        status = trainer.run_folder.status
        assert status.state == "failed"
        assert status.error is not None
        assert "the loss of step 2 is not finite" in status.error

    def test_random_numbers_are_those_of_the_failing_pass(self) -> None:
        """With dropout, a second look with other random numbers might find nothing."""

        class Unlucky(nn.Module):
            """Fails for one step's random number only."""

            def forward(self, inputs: torch.Tensor) -> torch.Tensor:
                return inputs * (torch.nan if torch.rand(()) < 0.2 else 1.0)

        message = failure(make_trainer(nn.Sequential(linear(), Unlucky()), steps=200))
        assert "module '1' (Unlucky)" in message


class TestSkip:
    def test_the_weights_are_left_as_they_are_and_training_goes_on(self) -> None:
        seen: list[torch.Tensor] = []

        class Watch(Callback):
            def on_step_end(self, trainer: Trainer) -> None:
                seen.append(weights(trainer.model))

        trainer = make_trainer(train_data=spoiled(), nan_policy="skip", callbacks=[Watch()])
        state = trainer.fit()
        assert (state.step, state.skipped, state.skipped_in_row) == (3, 1, 0)
        assert torch.equal(seen[0], seen[1])
        assert not torch.equal(seen[1], seen[2])

    @pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
    def test_the_result_is_as_if_the_batch_had_not_been(self, optimizer: Any) -> None:
        """Neither weights, nor moments, nor the count in the optimizer's bias correction know of it."""

        def run(data: Any, **options: Any) -> torch.Tensor:
            trainer = make_trainer(
                linear(), data, optimizer=lambda model: optimizer(model.parameters(), lr=0.1), **options
            )
            trainer.fit()
            return weights(trainer.model)

        kept = torch.utils.data.Subset(points(24), [*range(8), *range(16, 24)])
        assert torch.equal(run(spoiled(), nan_policy="skip"), run(kept))

    def test_a_part_of_an_accumulated_batch_spoils_the_whole_of_it(self) -> None:
        trainer = make_trainer(train_data=spoiled(), nan_policy="skip", accumulate=4)
        trainer.fit()
        whole = make_trainer(train_data=spoiled(), nan_policy="skip")
        whole.fit()
        torch.testing.assert_close(weights(trainer.model), weights(whole.model))

    def test_a_gradient_that_is_not_finite_is_skipped_too(self) -> None:
        model = WithBadGradient()
        state = make_trainer(model, points(24), nan_policy="skip").fit()
        assert state.skipped == 1
        assert torch.isfinite(weights(model)).all()

    def test_the_loss_in_the_log_is_that_of_the_other_steps(self) -> None:
        trainer = make_trainer(train_data=spoiled(), nan_policy="skip")
        trainer.fit()
        assert math.isfinite(trainer.recorder.history[0]["train/loss"])
        assert trainer.recorder.history[0]["skipped"] == 1

    def test_it_is_told(self, capsys: pytest.CaptureFixture[str]) -> None:
        make_trainer(train_data=spoiled(), nan_policy="skip").fit()
        assert "step 2 is left out: the loss is not finite (samples 8, 9" in capsys.readouterr().err

    def test_it_gives_up_after_max_skips_in_a_row(self) -> None:
        data = points(80)
        data.tensors[0][8:64] = math.nan  # steps 2 to 8
        patient = make_trainer(linear(), data, nan_policy="skip", max_skips=7)
        assert patient.fit().skipped == 7
        message = failure(make_trainer(linear(), data, nan_policy="skip", max_skips=6))
        assert "7 steps in a row" in message

    def test_skips_far_apart_do_not_add_up(self) -> None:
        data = points(80)
        data.tensors[0][8::16] = math.nan  # every second step
        assert make_trainer(linear(), data, nan_policy="skip", max_skips=1).fit().skipped == 5

    def test_in_fp16_it_works_as_well(self) -> None:
        """A scaler that is stepped without a gradient raises an error of its own."""
        model = linear()
        state = make_trainer(model, spoiled(), nan_policy="skip", precision="fp16").fit()
        assert state.skipped == 1
        assert torch.isfinite(weights(model)).all()


class TestCheckpoints:
    def test_weights_that_are_not_finite_are_never_written(self, tmp_path: Path) -> None:
        """A due save right after the bad update raises instead; the checkpoint before is left."""
        trainer = make_trainer(
            WithBadGradient(),
            points(24),
            dry_batch=False,
            run_dir=tmp_path / "run",
            every_steps=1,
            ema=EmaSettings(decay=0.5),
        )
        message = failure(trainer)
        assert "after step 2 'layer.weight' holds NaN; no checkpoint of it is written" in message
        assert [path.name for path in (tmp_path / "run/checkpoints").glob("step-*")] == ["step-00000001"]

    def test_not_even_on_the_way_out(self, tmp_path: Path) -> None:
        class Leave(Callback):
            def on_step_end(self, trainer: Trainer) -> None:
                if trainer.state.step == 2:
                    trainer.preempt("a test")

        trainer = make_trainer(
            WithBadGradient(), points(24), dry_batch=False, run_dir=tmp_path / "run", callbacks=[Leave()]
        )
        assert "no checkpoint of it is written" in failure(trainer)
        assert not list((tmp_path / "run").glob("checkpoints/step-*"))

    def test_a_validation_score_that_is_not_a_number_is_never_the_best(self, tmp_path: Path) -> None:
        data = points(seed=1)
        data.tensors[0][0] = math.nan
        trainer = make_trainer(val_data=data, run_dir=tmp_path / "run", epochs=2)
        state = trainer.fit()
        assert state.best_step is None
        assert trainer.store is not None
        assert trainer.store.best() is None


def test_an_accelerator_learns_of_it_at_the_next_log_line() -> None:
    """There no step waits for the loss; the record of the steps since the last line tells which it was."""
    trainer = make_trainer(train_data=spoiled(), log_every=3)
    trainer._waits_for_loss = False  # as on an accelerator
    message = failure(trainer)
    assert "within the 3 steps before step 3" in message
    assert "micro-batch 2" in message


def test_the_guard_can_fail_to_find_nothing_in_a_healthy_run() -> None:
    trainer = make_trainer(optimizer=sgd(0.1), epochs=5, val_data=points(seed=1))
    assert trainer.fit().skipped == 0
