"""Several optimizers of one model: `optimize(name, loss)` in an update of one's own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from support.processes import together
from support.states import assert_same_runs
from support.tasks import points, sgd
from torch import nn
from torch.nn import functional as F

from flambeau import Batch, Callback, Trainer
from flambeau.config.sections import EmaSettings
from flambeau.errors import CheckpointError, UsageError
from flambeau.optim import Linear
from flambeau.training.guard import NonFiniteError


class Pair(nn.Module):
    """Two modules that work against each other: one moves points, one tells moved ones from others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        # No biases before the batch norm: their gradient is zero but for rounding, which Adam makes large.
        self.mover = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4, bias=False))
        self.judge = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.judge(inputs).expand(-1, 3)


def judge_loss(model: Any, inputs: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = F.softplus(-model.judge(inputs)).mean() + F.softplus(model.judge(moved)).mean()
    return loss


def mover_loss(model: Any, moved: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = F.softplus(-model.judge(moved)).mean()
    return loss


class Rivals(Trainer):
    """Steps the judge, then the mover, as `docs/several-optimizers.md` does."""

    spoiled: ClassVar[Mapping[str, int]] = {}
    """The step, from 1, in which a loss is not finite."""

    def update(self, batch: Batch) -> None:
        model: Any = self.model
        moved = model.mover(batch.inputs)
        self.optimize("judge", self.spoil("judge", judge_loss(model, batch.inputs, moved.detach())))
        self.optimize("mover", self.spoil("mover", mover_loss(model, moved)))

    def spoil(self, name: str, loss: torch.Tensor) -> torch.Tensor:
        return loss * torch.nan if self.spoiled.get(name) == self.state.step + 1 else loss


def adams(model: Any) -> dict[str, torch.optim.Optimizer]:
    return {
        "mover": torch.optim.Adam(model.mover.parameters(), lr=1e-2),
        "judge": torch.optim.Adam(model.judge.parameters(), lr=2e-2),
    }


def make(kind: type[Trainer] = Rivals, optimizers: Any = adams, **options: Any) -> Trainer:
    model = Pair()
    options = {"device": "cpu", "batch_size": 8, "epochs": 3, "progress": False, "log_every": 1, **options}
    return kind(model, points(), nn.CrossEntropyLoss(), optimizers(model), **options)


def written_by_hand(
    steps: int, *, clip_norm: float | None = None, dtype: torch.dtype | None = None
) -> tuple[Pair, list[tuple[float, float]]]:
    """The same run with torch alone: weights, and the losses of each step."""
    model = Pair()
    optimizers, batches = adams(model), iter(make().feeder.batches())
    losses = []

    def step(name: str, loss: torch.Tensor) -> None:
        module = getattr(model, name)
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        for parameter, gradient in zip(module.parameters(), gradients, strict=True):
            parameter.grad = gradient
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        optimizers[name].step()

    for _ in range(steps):
        inputs = next(batches).inputs
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            moved = model.mover(inputs)
            first = judge_loss(model, inputs, moved.detach())
        step("judge", first)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            second = mover_loss(model, moved)
        step("mover", second)
        losses.append((first.item(), second.item()))
    return model, losses


def assert_equal_weights(one: nn.Module, other: nn.Module) -> None:
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


class TestMathematics:
    def test_weights_and_losses_are_those_of_a_loop_written_by_hand(self) -> None:
        """Gradients of one optimizer's loss reach no parameter of the other's."""
        trainer = make()
        trainer.fit()
        expected, losses = written_by_hand(trainer.state.step)
        assert_equal_weights(trainer.model, expected)
        history = [(r["train/loss/judge"], r["train/loss/mover"]) for r in trainer.recorder.history]
        assert history == losses
        assert all(parameter.grad is None for parameter in trainer.model.parameters())

    def test_each_optimizers_gradients_are_clipped_by_themselves(self) -> None:
        trainer = make(clip_norm=0.05)
        trainer.fit()
        assert_equal_weights(trainer.model, written_by_hand(trainer.state.step, clip_norm=0.05)[0])
        assert {"train/grad_norm/judge", "train/grad_norm/mover"} <= trainer.recorder.history[0].keys()

    def test_updates_run_in_the_precision_and_see_the_weights_of_the_step_before(self) -> None:
        """Autocast keeps 16-bit copies of weights: after a step of the judge, the mover's loss must not use them."""
        trainer = make(precision="bf16")
        trainer.fit()
        expected, _ = written_by_hand(trainer.state.step, dtype=torch.bfloat16)
        assert_equal_weights(trainer.model, expected)
        assert not torch.equal(trainer.model.mover[0].weight, written_by_hand(9)[0].mover[0].weight)

    def test_in_fp16_each_optimizer_has_a_scale_of_its_own(self) -> None:
        """A loss of large gradients finds a smaller one, and no update of the other's is left out for it."""

        class Steep(Rivals):
            def spoil(self, name: str, loss: torch.Tensor) -> torch.Tensor:
                return loss * 1e3 if name == "judge" else loss

        trainer = make(Steep, precision="fp16", epochs=8)
        trainer.fit()
        assert trainer.named is not None
        scales = {name: stepper.scaler.get_scale() for name, stepper in trainer.steppers.items() if stepper.scaler}
        skipped = {name: counts.skipped for name, counts in trainer.named.counts.items()}
        assert 0 < scales["judge"] < scales["mover"]
        assert skipped["judge"] > skipped["mover"]
        judge: Any = trainer.optimizers["judge"].state[trainer.model.judge[0].weight]
        assert judge["step"] == trainer.state.step - skipped["judge"]
        assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())

    def test_a_schedule_is_that_of_the_run_however_often_its_optimizer_steps(self) -> None:
        """Twice a step, every second step, or once: at the same step of the run the same share of its own rate."""
        rates: list[dict[str, float]] = []

        class Uneven(Trainer):
            def update(self, batch: Batch) -> None:
                model: Any = self.model
                for _ in range(2):
                    self.optimize("judge", judge_loss(model, batch.inputs, model.mover(batch.inputs).detach()))
                if self.state.step % 2 == 0:
                    self.optimize("mover", mover_loss(model, model.mover(batch.inputs)))
                rates.append({name: own.param_groups[0]["lr"] for name, own in self.optimizers.items()})

        trainer = make(
            Uneven, scheduler={"judge": Linear, "mover": lambda total_steps: Linear(total_steps=2 * total_steps)}
        )
        trainer.fit()
        assert trainer.total_steps == 9
        for step, own in enumerate(rates):
            assert own["judge"] == pytest.approx(2e-2 * (1 - step / 9))
            assert own["mover"] == pytest.approx(1e-2 * (1 - (step - step % 2) / 18))
        last = trainer.recorder.history[-1]
        assert last["lr/judge"] == rates[-1]["judge"]
        assert last["lr/mover"] == rates[-1]["mover"]

    def test_one_scheduler_is_the_schedule_of_all(self) -> None:
        trainer = make(scheduler=Linear)
        trainer.fit()
        assert trainer.optimizers["mover"].param_groups[0]["lr"] == pytest.approx(1e-2 / 9)
        assert trainer.optimizers["judge"].param_groups[0]["lr"] == pytest.approx(2e-2 / 9)

    def test_the_average_moves_once_a_step(self) -> None:
        trainer = make(ema=EmaSettings(decay=0.5), steps=1, epochs=None)
        before = copy.deepcopy(trainer.model)
        trainer.fit()
        assert trainer.ema is not None
        for own, old, new in zip(
            trainer.ema.model.parameters(), before.parameters(), trainer.model.parameters(), strict=True
        ):
            torch.testing.assert_close(own, (old + new) / 2)


class TestNumbersThatAreNotFinite:
    def test_the_run_stops_and_names_the_optimizer(self) -> None:
        class Spoiled(Rivals):
            spoiled: ClassVar = {"mover": 3}

        with pytest.raises(NonFiniteError, match="the loss of 'mover' in step 3 is not finite"):
            make(Spoiled).fit()

    def test_a_skipped_update_moves_neither_weights_nor_schedule_nor_state_and_leaves_the_other_alone(self) -> None:
        """The judge misses step 3; the mover has it: the average moves, and the judge's schedule is one step behind."""

        class Spoiled(Rivals):
            spoiled: ClassVar = {"judge": 3}

            def advance(self, batch: Batch) -> None:
                super().advance(batch)
                seen.append(copy.deepcopy(self.model))
                rates.append(self.optimizers["judge"].param_groups[0]["lr"])
                assert self.ema is not None
                averages.append(copy.deepcopy(self.ema.model))

        seen: list[Any] = []
        averages: list[Any] = []
        rates: list[float] = []
        trainer = make(Spoiled, nan_policy="skip", scheduler=Linear, ema=EmaSettings(decay=0.5))
        trainer.fit()
        assert torch.equal(seen[2].judge[0].weight, seen[1].judge[0].weight)
        assert not torch.equal(seen[2].mover[0].weight, seen[1].mover[0].weight)
        assert not torch.equal(averages[2].mover[0].weight, averages[1].mover[0].weight)
        assert rates == pytest.approx([2e-2 * (1 - count / 9) for count in (0, 1, 1, 2, 3, 4, 5, 6, 7)])
        assert trainer.optimizers["judge"].state[trainer.model.judge[0].weight]["step"] == 8
        assert trainer.state.skipped == 0
        assert trainer.recorder.history[-1]["skipped/judge"] == 1
        assert "train/loss/judge" not in trainer.recorder.history[2]

    def test_where_no_optimizer_steps_the_average_stands_still(self) -> None:
        class Spoiled(Rivals):
            spoiled: ClassVar = {"judge": 2, "mover": 2}

            def advance(self, batch: Batch) -> None:
                super().advance(batch)
                assert self.ema is not None
                averages.append(copy.deepcopy(self.ema.model))

        averages: list[Any] = []
        trainer = make(Spoiled, nan_policy="skip", ema=EmaSettings(decay=0.5))
        trainer.fit()
        assert_equal_weights(averages[0], averages[1])
        assert trainer.state.skipped == 1

    def test_too_many_skips_in_a_row_stop_the_run(self) -> None:
        class Broken(Rivals):
            def spoil(self, name: str, loss: torch.Tensor) -> torch.Tensor:
                return loss * torch.nan if name == "judge" else loss

        with pytest.raises(NonFiniteError, match="4 steps in a row of 'judge'"):
            make(Broken, nan_policy="skip", max_skips=3).fit()


class Leave(Callback):
    """Leaves the run after a step, as a signal would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: Trainer) -> None:
        if trainer.state.step == self.step:
            trainer.preempt("a test")


class Skipping(Rivals):
    """With everything that moves: a skipped step, dropout, and the random generators of a step."""

    spoiled: ClassVar = {"judge": 2}

    def update(self, batch: Batch) -> None:
        super().update(batch.replace(inputs=batch.inputs + 0.1 * torch.randn(batch.inputs.shape), targets=None))


class TestResume:
    @pytest.mark.parametrize("step", [2, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 3, 5))])
    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_a_run_left_after_any_step_ends_with_the_same_bits(self, tmp_path: Path, step: int, precision: str) -> None:
        def run(name: str, *callbacks: Callback, resume: bool = False) -> Path:
            make(
                Skipping,
                run_dir=tmp_path / name,
                callbacks=callbacks,
                nan_policy="skip",
                scheduler=Linear,
                ema=EmaSettings(decay=0.9),
                precision=precision,
                val_data=points(12),
                clip_norm=1.0,
            ).fit(resume=resume)
            return tmp_path / name

        whole = run("whole", Leave(0))
        run("left", Leave(step))
        assert_same_runs(run("left", Leave(0), resume=True), whole)

    def test_other_optimizers_than_those_of_the_checkpoint_are_refused(self, tmp_path: Path) -> None:
        make(run_dir=tmp_path / "run", callbacks=[Leave(2)]).fit()
        model = Pair()
        one = Trainer(model, points(), nn.CrossEntropyLoss(), sgd()(model), device="cpu", batch_size=8, epochs=3,
                      run_dir=tmp_path / "run", progress=False)  # fmt: skip
        with pytest.raises(CheckpointError, match="a run with several optimizers, and this trainer has one"):
            one.fit(resume=True)

        class Other(Rivals):
            def optimize(self, name: str, *args: Any, **kwargs: Any) -> bool:
                return super().optimize({"judge": "critic"}.get(name, name), *args, **kwargs)

        def renamed(model: Any) -> dict[str, torch.optim.Optimizer]:
            return {{"judge": "critic"}.get(name, name): own for name, own in adams(model).items()}

        with pytest.raises(CheckpointError, match="the optimizers mover, judge, and this trainer has the optimizers"):
            make(Other, renamed, run_dir=tmp_path / "run").fit(resume=True)


def several_processes(options: dict[str, Any]) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    trainer = make(Rivals, precision="fp64", val_data=points(12), **options)
    trainer.fit()
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}, trainer.recorder.history


def skipping_in_one_process(_: int) -> tuple[dict[str, torch.Tensor], int]:
    class Spoiled(Rivals):
        def spoil(self, name: str, loss: torch.Tensor) -> torch.Tensor:
            spoils = name == "judge" and self.state.step == 2 and self.world.rank == self.world.size - 1
            return loss * torch.nan if spoils else loss

    trainer = make(Spoiled, nan_policy="skip", scheduler=Linear)
    trainer.fit()
    assert trainer.named is not None
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}, trainer.named.counts[
        "judge"
    ].skipped


class TestSeveralProcesses:
    @pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
    def test_weights_are_those_of_one_process(self, ranks: int) -> None:
        """20 samples in batches of 8, of which the last has 4; the judge's batch norm is over all processes."""
        expected, history = several_processes({})
        for weights, records in together(ranks, several_processes, {}):
            for name, value in expected.items():
                difference = (weights[name].double() - value.double()).norm() / value.double().norm()
                assert difference <= 1e-10, name
            for one, other in zip(records, history, strict=True):
                assert one == pytest.approx(other, rel=1e-10)

    def test_a_loss_that_is_not_finite_in_one_process_is_skipped_by_all(self) -> None:
        (one, skipped), (other, skipped_there) = together(2, skipping_in_one_process, 0)
        assert skipped == skipped_there == 1
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert all(torch.isfinite(value).all() for value in one.values())


class TestRefusals:
    def test_every_trainable_parameter_is_in_exactly_one_optimizer(self) -> None:
        def forgetful(model: Any) -> dict[str, torch.optim.Optimizer]:
            return {"mover": torch.optim.SGD(model.mover.parameters(), lr=0.1)}

        def twice(model: Any) -> dict[str, torch.optim.Optimizer]:
            return {**adams(model), "mover": torch.optim.SGD(model.parameters(), lr=0.1)}

        with pytest.raises(UsageError, match=r"'judge.0.weight'.* in none of the optimizers mover"):
            make(optimizers=forgetful)
        with pytest.raises(UsageError, match=r"'judge.0.weight'.*: in the optimizers mover and judge"):
            make(optimizers=twice)
        assert make(optimizers=forgetful, freeze=["judge"]).optimizers.keys() == {"mover"}

    def test_a_trainer_without_an_update_of_its_own_takes_one_optimizer(self) -> None:
        with pytest.raises(UsageError, match="Trainer makes its updates with one optimizer") as caught:
            make(Trainer)
        assert "override `update`" in str(caught.value.remedy)

    @pytest.mark.parametrize("options", [{"accumulate": 2}, {"micro_batch": 4}, {"static_graph": True}])
    def test_settings_that_an_update_of_ones_own_would_not_follow(self, options: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match=f"trainer.{next(iter(options))} does not go with several optimizers"):
            make(**options)

    def test_an_unknown_name_a_loss_of_others_and_a_single_optimizer(self) -> None:
        class Misnamed(Rivals):
            def update(self, batch: Batch) -> None:
                self.optimize("jugde", torch.zeros(()))

        class Detached(Rivals):
            def update(self, batch: Batch) -> None:
                model: Any = self.model
                self.optimize("mover", mover_loss(model, model.mover(batch.inputs).detach()))

        class Plain(Trainer):
            def update(self, batch: Batch) -> None:
                super().update(batch)

        with pytest.raises(UsageError, match="its own `step` and `update` are of one"):
            make(Plain).fit()
        with pytest.raises(UsageError, match="no optimizer is called so"):
            make(Misnamed).fit()
        with pytest.raises(UsageError, match="depends on none of that optimizer's parameters"):
            make(Detached).fit()
        with pytest.raises(UsageError, match="has no name"):
            make(optimizers=sgd()).fit()
        with pytest.raises(UsageError, match="several optimizers"):
            _ = make().optimizer
        with pytest.raises(UsageError, match="a scheduler of critic, which is none of the optimizers"):
            make(scheduler={"critic": Linear})
