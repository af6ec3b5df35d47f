"""One optimizer step: what it is a step on, how large it is, and what it counts as."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tasks import linear, make_trainer, points, sgd, weights
from torch import nn
from torch.utils.data import TensorDataset

from flambeau import Batch, Trainer
from flambeau.callbacks import TimeLimit
from flambeau.config.sections import EmaSettings
from flambeau.criterions.cross_entropy import CrossEntropy
from flambeau.errors import UsageError
from flambeau.optim import Cosine, Schedule

IGNORED = -100


class Tagger(nn.Module):
    """Scores for each token of a sequence: (N, T, 4) -> (N, 3, T)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs).transpose(1, 2)


def ragged(samples: int, lengths: list[int]) -> TensorDataset:
    """Sequences of up to 7 tokens, of which the first `length` count."""
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(3, (samples, 7), generator=generator)
    for row, length in zip(targets, lengths, strict=True):
        row[length:] = IGNORED
    return TensorDataset(torch.randn(samples, 7, 4, generator=generator, dtype=torch.float64), targets)


def gradients_of_one_step(trainer: Trainer) -> torch.Tensor:
    """The gradient of the first step, from the weights that plain SGD with lr 1 moves."""
    before = weights(trainer.model)
    trainer.fit()
    assert trainer.state.step == 1
    return before - weights(trainer.model)


def tagging_step(data: TensorDataset, accumulate: int, criterion: nn.Module, **options: Any) -> torch.Tensor:
    return gradients_of_one_step(
        make_trainer(
            Tagger(),
            data,
            criterion,
            sgd(lr=1.0),
            batch_size=32,
            accumulate=accumulate,
            precision="fp64",
            steps=1,
            shuffle=True,
            **options,
        )
    )


class TestAccumulation:
    CRITERIONS: ClassVar = {
        "mean over tokens": lambda: nn.CrossEntropyLoss(ignore_index=IGNORED),
        "flambeau's own": lambda: CrossEntropy(ignore_index=IGNORED),
        "weighted classes": lambda: nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]).double()),
        "sum over tokens": lambda: nn.CrossEntropyLoss(reduction="sum"),
        "label smoothing": lambda: nn.CrossEntropyLoss(label_smoothing=0.1),
    }

    @pytest.mark.parametrize("criterion", CRITERIONS)
    @settings(max_examples=8, deadline=None)
    @given(lengths=st.lists(st.integers(0, 7), min_size=32, max_size=32).filter(any))
    def test_1x32_4x8_and_32x1_are_the_same_update(self, criterion: str, lengths: list[int]) -> None:
        """However ragged the targets are, down to samples without any."""
        data, make = ragged(32, lengths), self.CRITERIONS[criterion]
        whole = tagging_step(data, 1, make())
        assert torch.isfinite(whole).all()
        for accumulate in (4, 32):
            torch.testing.assert_close(tagging_step(data, accumulate, make()), whole, rtol=1e-12, atol=1e-12)

    def test_the_update_is_the_gradient_of_the_mean_over_all_tokens(self) -> None:
        """Compared with torch alone."""
        data = ragged(32, [1 + index % 7 for index in range(32)])
        model = Tagger().double()
        loss = nn.functional.cross_entropy(model(data.tensors[0]), data.tensors[1], ignore_index=IGNORED)
        loss.backward()
        expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        for accumulate in (1, 4):
            step = tagging_step(data, accumulate, nn.CrossEntropyLoss(ignore_index=IGNORED))
            torch.testing.assert_close(step, expected, rtol=1e-12, atol=1e-12)

    def test_a_batch_without_any_target_is_no_fault_and_moves_nothing(self) -> None:
        data = ragged(32, [0] * 32)
        for accumulate in (1, 4):
            assert tagging_step(data, accumulate, nn.CrossEntropyLoss(ignore_index=IGNORED)).abs().max() == 0

    @pytest.mark.parametrize("criterion", [nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss])
    def test_losses_over_elements_accumulate_exactly(self, criterion: type[nn.Module]) -> None:
        torch.manual_seed(0)
        data = TensorDataset(torch.randn(10, 4).double(), torch.randn(10, 3).double())

        def step(accumulate: int) -> torch.Tensor:
            return gradients_of_one_step(
                make_trainer(
                    linear(), data, criterion(), sgd(1.0), batch_size=10, accumulate=accumulate, precision="fp64"
                )
            )

        for accumulate in (3, 10):
            torch.testing.assert_close(step(accumulate), step(1), rtol=1e-12, atol=1e-12)

    def test_a_smaller_last_batch_is_stepped_on_and_is_a_mean_of_its_own(self) -> None:
        """20 samples in batches of 8: 8, 8 and 4, each split into up to four parts."""
        data = points(20, dtype=torch.float64)
        whole = make_trainer(linear(), data, precision="fp64")
        parts = make_trainer(linear(), data, precision="fp64", accumulate=8)
        for trainer in (whole, parts):
            trainer.fit()
            assert (trainer.state.step, trainer.state.samples) == (3, 20)
        torch.testing.assert_close(weights(parts.model), weights(whole.model), rtol=1e-12, atol=1e-12)

        model = linear().double()
        for start in (0, 8, 16):
            inputs, targets = data[start : start + 8]
            gradient = torch.autograd.grad(nn.functional.cross_entropy(model(inputs), targets), model.parameters())
            with torch.no_grad():
                for parameter, value in zip(model.parameters(), gradient, strict=True):
                    parameter -= 0.1 * value
        torch.testing.assert_close(weights(whole.model), weights(model), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("criterion", CRITERIONS)
    def test_the_logged_loss_does_not_depend_on_accumulation(self, criterion: str) -> None:
        data = ragged(32, [1 + index % 7 for index in range(32)])
        losses = []
        for accumulate in (1, 4, 32):
            trainer = make_trainer(
                Tagger(),
                data,
                self.CRITERIONS[criterion](),
                sgd(1.0),
                batch_size=32,
                accumulate=accumulate,
                precision="fp64",
                steps=1,
            )
            trainer.fit()
            losses.append(trainer.recorder.history[0]["train/loss"])
        assert losses == pytest.approx([losses[0]] * 3, rel=1e-9)


class TestClipping:
    def test_the_norm_of_all_gradients_together_is_limited(self) -> None:
        step = gradients_of_one_step(make_trainer(optimizer=sgd(1.0), steps=1, clip_norm=0.01))
        assert step.norm().item() == pytest.approx(0.01, rel=1e-3)

    def test_it_acts_on_the_whole_accumulated_gradient(self) -> None:
        def step(accumulate: int) -> torch.Tensor:
            return gradients_of_one_step(
                make_trainer(optimizer=sgd(1.0), batch_size=20, accumulate=accumulate, clip_norm=0.01, precision="fp64")
            )

        torch.testing.assert_close(step(5), step(1), rtol=1e-12, atol=1e-12)

    def test_in_fp16_it_acts_on_the_gradient_without_the_loss_scale(self) -> None:
        """A gradient that is clipped before it is unscaled would be 65,536 times too small."""
        step = gradients_of_one_step(make_trainer(optimizer=sgd(1.0), steps=1, clip_norm=0.01, precision="fp16"))
        assert step.norm().item() == pytest.approx(0.01, rel=1e-2)
        free = gradients_of_one_step(make_trainer(optimizer=sgd(1.0), steps=1, clip_norm=1e6, precision="fp16"))
        fp32 = gradients_of_one_step(make_trainer(optimizer=sgd(1.0), steps=1))
        torch.testing.assert_close(free, fp32, rtol=1e-2, atol=1e-3)

    def test_the_norm_before_clipping_is_logged(self) -> None:
        trainer = make_trainer(optimizer=sgd(1.0), steps=1, clip_norm=0.01)
        trainer.fit()
        inputs, targets = points()[:8]
        model = linear()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item()
        assert trainer.recorder.history[0]["train/grad_norm"] == pytest.approx(expected, rel=1e-5)


class Spy(nn.Module):
    """Remembers the type of what flows through it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()
        self.seen: torch.dtype | None = None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = self.layer(inputs)
        self.seen = outputs.dtype
        return outputs


class TestPrecision:
    @pytest.mark.parametrize(
        ("precision", "computed", "stored"),
        [
            ("fp32", torch.float32, torch.float32),
            ("fp64", torch.float64, torch.float64),
            ("bf16", torch.bfloat16, torch.float32),
            ("fp16", torch.float16, torch.float32),
        ],
    )
    def test_the_forward_pass_computes_in_it_and_the_weights_are_kept_wide(
        self, precision: str, computed: torch.dtype, stored: torch.dtype
    ) -> None:
        model = Spy()
        trainer = make_trainer(model, precision=precision, val_data=points(seed=1))
        before = weights(model)
        trainer.fit()
        assert model.seen == computed
        assert weights(model).dtype == stored
        assert not torch.equal(weights(model), before)
        trainer.evaluate()
        assert model.seen == computed

    def test_fp16_starts_from_a_large_scale_and_finds_one_that_fits(self) -> None:
        """Losses of 1e3 overflow with the first scale: those steps are left out, and are no fault."""

        def huge(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return 1e3 * nn.functional.cross_entropy(outputs, targets)

        trainer = make_trainer(criterion=huge, optimizer=sgd(1e-6), steps=30, precision="fp16", nan_policy="stop")
        state = trainer.fit()
        assert 0 < state.skipped < 30
        assert state.updates == 30 - state.skipped
        assert torch.isfinite(weights(trainer.model)).all()


class Recording(Schedule):
    """A schedule that remembers what it was asked."""

    def __init__(self, *, total_steps: int) -> None:
        super().__init__(total_steps=total_steps)
        self.asked: list[int] = []

    def __call__(self, step: int) -> float:
        self.asked.append(step)
        return 1.0 / (1 + step)


class TestSchedule:
    def test_it_is_asked_once_an_optimizer_step_from_zero_on(self) -> None:
        """Not once a micro-batch, an epoch or a validation."""
        schedule = Recording(total_steps=6)
        make_trainer(scheduler=schedule, epochs=2, accumulate=4, val_data=points()).fit()
        assert schedule.asked == [0, 1, 2, 3, 4, 5]

    def test_its_factor_multiplies_the_rate_of_each_group(self) -> None:
        model = linear()
        optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 1.0}, {"params": [model.bias], "lr": 0.5}])
        trainer = Trainer(
            model,
            points(),
            nn.CrossEntropyLoss(),
            optimizer,
            scheduler=Recording,
            epochs=1,
            batch_size=8,
            log_every=1,
            device="cpu",
        )
        trainer.fit()
        for key, rates in (("lr", [1.0, 1 / 2, 1 / 3]), ("lr/1", [0.5, 0.5 / 2, 0.5 / 3])):
            assert [record[key] for record in trainer.recorder.history] == pytest.approx(rates)

    def test_a_step_that_is_skipped_does_not_advance_it_nor_the_average(self) -> None:
        data = points(40)
        data.tensors[0][8] = torch.nan  # the second batch of five
        schedule = Recording(total_steps=5)
        trainer = make_trainer(
            train_data=data,
            scheduler=schedule,
            nan_policy="skip",
            ema=EmaSettings(decay=0.5),
            log_every=1,
        )
        assert trainer.ema is not None
        averages = []
        trainer.hooks.step_end = (lambda t: averages.append(weights(t.ema.model)),)
        state = trainer.fit()
        assert schedule.asked == [0, 1, 2, 3]
        assert (state.step, state.skipped, state.updates) == (5, 1, 4)
        assert torch.equal(averages[0], averages[1])
        assert not torch.equal(averages[1], averages[2])
        assert [record.get("skipped") for record in trainer.recorder.history] == [None, 1, 1, 1, 1]

    def test_it_is_made_for_the_length_of_the_run(self) -> None:
        trainer = make_trainer(scheduler=Cosine, epochs=4)
        assert trainer.stepper.schedule.total_steps == trainer.total_steps == 12


class TestEma:
    @settings(max_examples=10, deadline=None)
    @given(
        decay=st.floats(0.0, 0.99),
        every=st.integers(1, 3),
        after=st.integers(0, 5),
    )
    def test_it_is_its_formula(self, decay: float, every: int, after: int) -> None:
        """average <- decay * average + (1 - decay) * weight, at every n-th update; before, it follows the weights."""
        trainer = make_trainer(
            epochs=3,
            precision="fp64",
            ema=EmaSettings(decay=decay, update_every=every, update_after_step=after),
        )
        expected = weights(trainer.model)

        def follow(trainer: Trainer) -> None:
            nonlocal expected
            update = trainer.state.updates
            if update % every == 0:
                now = weights(trainer.model)
                expected = now if update <= after else decay * expected + (1 - decay) * now

        trainer.hooks.step_end = (follow,)
        trainer.fit()
        assert trainer.ema is not None
        torch.testing.assert_close(weights(trainer.ema.model), expected, rtol=1e-12, atol=1e-12)

    def test_it_counts_updates_that_were_applied(self) -> None:
        """With every second one averaged and the second step skipped: after the third and the fifth step."""
        data = points(40)
        data.tensors[0][8] = torch.nan
        trainer = make_trainer(train_data=data, nan_policy="skip", ema=EmaSettings(decay=0.5, update_every=2))
        assert trainer.ema is not None
        averages = [weights(trainer.ema.model)]
        trainer.hooks.step_end = (lambda t: averages.append(weights(t.ema.model)),)
        trainer.fit()
        moved = [not torch.equal(one, other) for one, other in pairwise(averages)]
        assert moved == [False, False, True, False, True]

    def test_statistics_of_normalisation_are_taken_over_as_they_are(self) -> None:
        model = nn.Sequential(nn.BatchNorm1d(4), linear())
        trainer = make_trainer(model, ema=EmaSettings(decay=0.9))
        trainer.fit()
        assert trainer.ema is not None
        for average, source in zip(trainer.ema.model.buffers(), model.buffers(), strict=True):
            assert torch.equal(average, source)

    def test_it_is_evaluated_beside_the_model_and_changes_nothing_in_training(self) -> None:
        plain = make_trainer(linear(), epochs=2, val_data=points(seed=1))
        averaged = make_trainer(linear(), epochs=2, val_data=points(seed=1), ema=EmaSettings(decay=0.9))
        plain.fit()
        averaged.fit()
        assert torch.equal(weights(plain.model), weights(averaged.model))
        scores = averaged.recorder.history[-1]
        assert scores["val/loss"] == plain.recorder.history[-1]["val/loss"]
        assert averaged.ema is not None
        assert scores["val/ema/loss"] == averaged.evaluate(model=averaged.ema.model)["loss"]
        assert scores["val/ema/loss"] != scores["val/loss"]

    def test_it_can_be_what_is_monitored(self, tmp_path: Any) -> None:
        """Then the best checkpoint is chosen by the average's score, and tested with the average's weights."""
        trainer = make_trainer(
            epochs=2,
            val_data=points(),
            test_data=points(seed=2),
            ema=EmaSettings(decay=0.9),
            monitor="val/ema/loss",
            test_at_end=True,
            run_dir=tmp_path / "run",
        )
        trainer.fit()
        records = trainer.recorder.history
        scores = {r["step"]: r["val/ema/loss"] for r in records if "val/ema/loss" in r}
        assert trainer.state.best_score == min(scores.values())
        tested = records[-1]["test/loss"]
        assert trainer.ema is not None
        assert trainer.state.best_step == trainer.state.step
        assert tested == trainer.evaluate(trainer.test_data, model=trainer.ema.model)["loss"]


class TestFrozenModules:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
            self.head = nn.Linear(4, 3)
            self.modes: set[tuple[bool, bool]] = set()

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            self.modes.add((self.head.training, self.backbone[2].training))
            return self.head(self.backbone(inputs))

    def test_they_neither_move_nor_leave_evaluation_mode(self) -> None:
        """Not even the statistics of their normalisation, and not after a validation either."""
        model = self.Net()
        model.backbone[1].running_mean += 0.5
        before = copy.deepcopy(model.backbone.state_dict())
        head = weights(model.head)
        trainer = make_trainer(model, epochs=3, freeze=["backbone"], val_data=points())
        trainer.fit()
        for name, tensor in model.backbone.state_dict().items():
            assert torch.equal(tensor, before[name]), name
        assert not torch.equal(weights(model.head), head)
        assert model.modes == {(True, False), (False, False)}

    def test_nor_after_a_callback_has_looked_at_images(self, tmp_path: Any) -> None:
        from flambeau.callbacks import SampleImages

        class Tracker:
            def __getattr__(self, name: str) -> Any:
                return lambda *args: None

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.backbone = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
                self.head = nn.Linear(2, 3)

            def forward(self, inputs: torch.Tensor) -> torch.Tensor:
                return self.head(self.backbone(inputs).mean((2, 3)))

        images = TensorDataset(torch.randn(12, 1, 5, 5), torch.arange(12) % 3)
        model = Net()
        trainer = make_trainer(
            model,
            images,
            epochs=2,
            freeze=["backbone"],
            val_data=images,
            callbacks=[SampleImages()],
            trackers=[Tracker()],
        )
        trainer.fit()
        assert not model.backbone[1].training
        assert model.backbone[1].num_batches_tracked == 0

    def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_names(self) -> None:
        with pytest.raises(UsageError, match="matches no module") as caught:
            make_trainer(self.Net(), freeze=["bakbone"])
        assert "backbone" in str(caught.value)


class Cutting(nn.Module):
    """Two networks against each other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.generator, self.discriminator = nn.Linear(2, 4), nn.Linear(4, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.discriminator(inputs)


class GanTrainer(Trainer):
    """Two optimizers in one step. The second rides in a callback, so that checkpoints hold its state."""

    def update(self, batch: Batch) -> None:
        noise = torch.randn(batch.size, 2)
        fake = self.model.generator(noise)
        self.second: torch.optim.Optimizer
        score = nn.functional.softplus
        loss_d = (score(-self.model(batch.inputs)) + score(self.model(fake.detach()))).mean()
        self.second.zero_grad()
        loss_d.backward()
        self.second.step()
        loss_g = score(-self.model(fake)).mean()
        loss_g.backward()
        self.step()
        self.train_means.add("train/loss", loss_g.item(), batch.size)
        self.train_means.add("train/discriminator", loss_d.item(), batch.size)


class TestOverrides:
    def test_training_step_alone_may_be_ones_own(self) -> None:
        """A loss of one's own without any criterion; accumulation, clipping and the rest stay."""

        class Own(Trainer):
            def training_step(self, batch: Batch) -> torch.Tensor:
                return nn.functional.cross_entropy(self.forward(batch.inputs), batch.targets)

        model = linear()
        own = Own(
            model, points(), optimizer=sgd()(model), epochs=1, batch_size=8, shuffle=False, accumulate=2, device="cpu"
        )
        own.fit()
        usual = make_trainer(linear(), accumulate=2)
        usual.fit()
        torch.testing.assert_close(weights(model), weights(usual.model))

    def test_a_trainer_without_criterion_and_step_says_what_is_missing(self) -> None:
        trainer = Trainer(linear(), points(), epochs=1, device="cpu")
        with pytest.raises(UsageError, match="override training_step"):
            trainer.fit()

    def test_update_may_be_ones_own_and_resumes_exactly(self, tmp_path: Any) -> None:
        def trainer(name: str, stop: int | None = None) -> GanTrainer:
            from flambeau import Callback

            model = Cutting()
            second = torch.optim.Adam(model.discriminator.parameters(), lr=0.01)

            class Second(Callback):
                def on_step_end(self, trainer: Trainer) -> None:
                    if trainer.state.step == stop:
                        trainer.preempt("a test")

                def state_dict(self) -> dict[str, Any]:
                    return second.state_dict()

                def load_state_dict(self, state: Any) -> None:
                    second.load_state_dict(state)

            made = make_trainer(
                model,
                points(),
                optimizer=lambda model: torch.optim.Adam(model.generator.parameters(), lr=0.01),
                kind=GanTrainer,
                epochs=4,
                callbacks={"second optimizer": Second()},
                run_dir=tmp_path / name,
            )
            assert isinstance(made, GanTrainer)
            made.second = second
            return made

        whole = trainer("whole")
        whole.fit()
        trainer("cut", stop=5).fit()
        resumed = trainer("cut")
        resumed.fit(resume=True)
        assert resumed.state.step == 12
        assert torch.equal(weights(whole.model), weights(resumed.model))
        assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "cut/metrics.jsonl").read_bytes()
        assert "train/discriminator" in whole.recorder.history[0]

    def test_scalars_that_a_criterion_gives_beside_the_loss_are_averaged_into_the_log(self) -> None:
        def criterion(outputs: torch.Tensor, targets: torch.Tensor) -> Any:
            return nn.functional.cross_entropy(outputs, targets), {"samples": float(len(targets))}

        trainer = make_trainer(criterion=criterion, val_data=points(seed=1))
        trainer.fit()
        assert trainer.recorder.history[0]["train/samples"] == pytest.approx((8 * 8 + 8 * 8 + 4 * 4) / 20)
        assert "train/loss" in trainer.recorder.history[0]


@pytest.mark.slow
def test_a_compiled_model_trains_like_the_plain_one_and_keeps_its_names(tmp_path: Any) -> None:
    """Checkpoints hold no `_orig_mod.`, so any program can load them."""
    plain, compiled = make_trainer(linear()), make_trainer(linear(), compile=True, run_dir=tmp_path / "run")
    plain.fit()
    compiled.fit()
    torch.testing.assert_close(weights(plain.model), weights(compiled.model))
    assert compiled.store is not None
    newest = compiled.store.newest()
    assert newest is not None
    assert set(newest.load("model")["model"]) == {"weight", "bias"}


def test_the_time_limit_preempts(tmp_path: Any) -> None:
    """After the step in which the time is up, saved."""
    trainer = make_trainer(epochs=3, callbacks=[TimeLimit(minutes=1e-9)], run_dir=tmp_path / "run")
    state = trainer.fit()
    assert state.step == 1
    assert trainer.preemption is not None
    assert "time limit" in trainer.preemption
    assert trainer.run_folder is not None
    assert trainer.run_folder.status.state == "preempted"
    assert (tmp_path / "run/checkpoints/step-00000001").is_dir()
