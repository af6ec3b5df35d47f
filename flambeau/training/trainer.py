"""The loop: the life of a run, in the order in which things happen.

`Trainer.fit` is the run, `Trainer.update` one optimizer step. A method of one's own overrides `training_step` (the
loss of a batch) or `update` (backward, clipping, optimizers) and keeps everything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flambeau.checkpoint import CheckpointStore
from flambeau.config.sections import CheckpointSettings, LoaderSettings, OptimizerSettings, TrainerSettings
from flambeau.criterions import reduction_of, unit_counter, weigh
from flambeau.data import Batch, EvalFeeder, Feeder
from flambeau.errors import CheckpointError, UsageError
from flambeau.metrics import Metric, prepare_metric
from flambeau.optim import Schedule, build_optimizer, clip_gradient_norm, direct_step
from flambeau.registry import register
from flambeau.run_folder import RunFolder
from flambeau.runtime.determinism import deterministic_algorithms, seed_torch
from flambeau.runtime.devices import resolve_device
from flambeau.runtime.seeds import derive, isolated
from flambeau.runtime.signals import StopSignals
from flambeau.tracking import Tracker
from flambeau.training import guard, snapshot
from flambeau.training.callback import Callback, Hooks, label_callbacks
from flambeau.training.due import Due
from flambeau.training.ema import Ema
from flambeau.training.evaluation import evaluate
from flambeau.training.freeze import freeze_modules
from flambeau.training.monitor import choose_monitor
from flambeau.training.options import apply_options
from flambeau.training.plan import DEBUG_BATCHES, check_splits, make_schedule, plan_steps
from flambeau.training.precision import Precision
from flambeau.training.profiling import profiler
from flambeau.training.progress import Clock
from flambeau.training.recorder import Recorder
from flambeau.training.running_means import RunningMeans
from flambeau.training.state import TrainState
from flambeau.training.where import run_folder_of

TrackerFactory = Callable[[Path, "int | None"], Sequence[Tracker]]
"""Makes trackers for a run folder, from the step that a resumed run goes on from."""


@register.trainer("default")
class Trainer:
    """Trains one model.

    Args:
        model: any module; called with a batch's inputs.
        train_data: map-style or iterable dataset of `(input, target)` or `{"inputs": ..., "targets": ...}`.
        criterion: called with `(outputs, targets)`; gives the loss, or the loss and a dict of scalars. Not needed by a
            subclass that computes its own.
        optimizer: any `torch.optim.Optimizer` over the model's parameters; default: AdamW with torch's defaults.
        val_data: measured as the settings say, and at the end; decides which checkpoint is best.
        test_data: measured by `test_at_end`, once, with the best checkpoint.
        metrics: objects with `update(outputs, targets)`, `compute()` and `reset()`, by label.
        scheduler: a schedule, or what makes one when called with `total_steps=`; default: constant.
        callbacks: by label or in a row.
        trackers: where scalars go besides the run folder; or what makes them from `(run_dir, resume_step)`.
        train_transform, eval_transform: applied to each sample; seeded by (seed, epoch, index).
        batch_transform: applied to each batch on the device, in training and evaluation.
        run_dir: where the run is kept; None keeps nothing on disk.
        seed: of the order of samples, augmentation and dropout.
        device: `auto`, `cpu`, `0`, `cuda:1` ...
        settings, loader, checkpoint: all other settings, see `flambeau.config.sections`.
        **options: single settings by name: `epochs=3, batch_size=64, precision="bf16"`.

    Example:
        >>> trainer = Trainer(net, train_set, nn.CrossEntropyLoss(), val_data=val_set, epochs=3, batch_size=64)
        >>> trainer.fit()
        >>> trainer.evaluate(test_set)
    """

    def __init__(
        self,
        model: nn.Module,
        train_data: Any,
        criterion: Callable[..., Any] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        val_data: Any = None,
        test_data: Any = None,
        metrics: Mapping[str, Metric] | None = None,
        scheduler: Schedule | Callable[..., Schedule] | None = None,
        callbacks: Mapping[str, Callback] | Iterable[Callback] = (),
        trackers: Sequence[Tracker] | TrackerFactory = (),
        train_transform: Callable[[Any], Any] | None = None,
        eval_transform: Callable[[Any], Any] | None = None,
        batch_transform: Callable[[Batch], Batch] | None = None,
        run_dir: RunFolder | Path | str | None = None,
        seed: int = 0,
        device: str | torch.device = "auto",
        settings: TrainerSettings | None = None,
        loader: LoaderSettings | None = None,
        checkpoint: CheckpointSettings | None = None,
        **options: Any,
    ) -> None:
        self.settings, self.loader, self.checkpoint = apply_options(settings, loader, checkpoint, options)
        self.seed = seed
        self.device = resolve_device(device)
        self.precision = Precision(self.settings.precision, self.device)
        self.precision.cast_model(model)
        self.model = model.to(self.device)
        self.frozen = freeze_modules(self.model, self.settings.freeze)
        if isinstance(criterion, nn.Module):  # it may hold class weights
            self.precision.cast_model(criterion.to(self.device))
        self.criterion = criterion
        if optimizer is None:
            optimizer = build_optimizer(self.model, torch.optim.AdamW, {}, OptimizerSettings(), self.device)
        self.optimizer = optimizer
        self.metrics = {label: prepare_metric(label, metric) for label, metric in (metrics or {}).items()}
        self.callbacks = label_callbacks(callbacks)
        self.hooks = Hooks(self.callbacks)
        self.trackers = trackers
        self.ema = Ema(self.model, self.settings.ema) if self.settings.ema else None
        self.forward: Callable[..., Any] = torch.compile(self.model) if self.settings.compile else self.model

        self.train_data, self.val_data, self.test_data = train_data, val_data, test_data
        check_splits(self.settings, val_data=val_data, test_data=test_data)
        self.eval_transform, self.batch_transform = eval_transform, batch_transform
        self.feeder = Feeder(
            train_data,
            settings=self.loader,
            batch_size=self.batch_size,
            seed=seed,
            device=self.device,
            transform=train_transform,
            batch_transform=batch_transform,
        )
        self.total_steps = plan_steps(self.settings, self.feeder.steps_per_epoch)
        self.due = Due(self.settings, self.checkpoint, self.feeder.steps_per_epoch, self.total_steps)
        self.scheduler = scheduler
        self.schedule = make_schedule(scheduler, self.total_steps)
        self.monitor, self.mode = choose_monitor(self.settings, self.metrics)

        self.run_dir = run_dir
        self.run_folder: RunFolder | None = None
        self.recorder = Recorder(None, self.monitor, progress=False)
        self.store: CheckpointStore | None = None
        self.state = TrainState()
        self.train_means = RunningMeans()
        self.stop_reason: str | None = None
        self.preemption: str | None = None

        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self._step_optimizer = direct_step(self.optimizer)
        self._trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        learning = (p for p in self.model.parameters() if p.requires_grad)
        self._with_gradient = list(dict.fromkeys([*self._trained, *learning]))
        self._count_units = unit_counter(criterion) if criterion is not None else None
        self._sums_losses = criterion is not None and reduction_of(criterion) == "sum"
        self._waits_for_loss = self.device.type == "cpu" or self.settings.nan_policy == "skip"
        self._step_seed = derive(seed, "step")
        self._last_batch: Batch | None = None
        self._eval_feeders: dict[int, tuple[Any, EvalFeeder]] = {}

    @property
    def batch_size(self) -> int:
        """Samples per optimizer step over all devices: the global batch."""
        return self.loader.batch_size_per_rank or self.loader.batch_size

    @property
    def epoch(self) -> int:
        """The number of the epoch that the last step belongs to, from 1; 0 where the data has no known length."""
        steps = self.feeder.steps_per_epoch
        return -(-self.state.step // steps) if steps else 0

    # ---------------------------------------------------------------- the run

    def fit(self, *, resume: bool = False) -> TrainState:
        """Train until the planned end, an early stop, or a signal.

        Args:
            resume: go on from the newest whole checkpoint in `run_dir`, if there is one.

        Returns:
            Where the run stands; `preemption` says what ended it before its time, if anything did.
        """
        with ExitStack() as stack:
            stack.enter_context(
                deterministic_algorithms(self.settings.deterministic, self.device, compiled=self.settings.compile)
            )
            signals = stack.enter_context(StopSignals())
            folder = stack.enter_context(run_folder_of(self.run_dir, resume, self.device))
            stack.callback(self._close)
            try:
                self._begin(resume, folder)
                batches = self.batches(self.state.step)
                with profiler(self.settings.profile, self.run_folder) as profile_step:
                    while not self.finished():
                        self._start_epoch()
                        batch = next(batches)
                        # Dropout and noise of a step are a function of (seed, step), whatever ran before it.
                        seed_torch(derive(self._step_seed, self.state.step), self.device)
                        self.update(batch)
                        self.advance(batch)

                        step = self.state.step
                        if self.due.log(step):
                            self.log()  # the only place that waits for the device
                        if self.due.validation(step):
                            self.validate()
                        self._after_step(step)
                        self.preemption = self.preemption or signals.received
                        if self._should_save(step):
                            self.save()
                        if self.preemption:
                            break
                        profile_step()
                self._end()
            except BaseException as error:
                self._fail(error)
                raise
        return self.state

    def batches(self, start: int) -> Iterator[Batch]:
        """The global batches from step `start` on, without end: a pure function of seed and step."""
        repeated = self.settings.debug == "overfit_batch"
        for batch in self.feeder.batches(0 if repeated else start):
            batch = self.precision.cast(batch)
            yield batch
            while repeated:
                yield batch

    def finished(self) -> bool:
        """Whether the run is at its planned end, or is to stop early."""
        if self.state.step >= self.total_steps:
            return True
        early = self.settings.early_stopping
        if early is not None and self.state.stale_validations >= early.patience:
            self.stop_reason = f"no improvement of {self.monitor} in {early.patience} validations"
        return self.stop_reason is not None

    def stop(self, reason: str) -> None:
        """End the run after this step as a finished one."""
        self.stop_reason = reason

    def preempt(self, reason: str) -> None:
        """Save and leave after this step, to be resumed."""
        self.preemption = reason

    # ---------------------------------------------------------------- one step

    def update(self, batch: Batch) -> None:
        """One optimizer step on one global batch: forward, backward, clip, optimizer, schedule."""
        micro_batches = batch.split(self.settings.accumulate) if self.settings.accumulate > 1 else [batch]
        units = [self.units(micro) for micro in micro_batches]
        for micro, share in zip(micro_batches, units, strict=True):
            with self.precision.autocast():
                loss = self.training_step(micro)
            value = loss.item() if self._waits_for_loss else loss.detach()
            if isinstance(value, float) and not math.isfinite(value) and share:  # no units at all: 0/0, and no fault
                return self._reject_loss(micro)
            self.train_means.add("train/loss", self.per_unit(value, share), share)
            if len(micro_batches) > 1 and not self._sums_losses:
                # The mean over the batch is the mean of its parts' means, weighted by their units.
                loss = weigh(loss, share) / sum(units)
            self.backward(loss)
        self.step()
        return None

    def training_step(self, batch: Batch) -> torch.Tensor:
        """The loss of one batch."""
        return self.compute_loss(self.forward(batch.inputs), batch)

    def compute_loss(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """The criterion's loss; the scalars that it gives beside it are averaged into the log."""
        if self.criterion is None:
            raise UsageError("the trainer has no criterion", remedy="give one, or override training_step")
        loss = self.criterion(outputs, batch.targets)
        if isinstance(loss, tuple):
            loss, scalars = loss
            for name, value in scalars.items():
                if self.model.training:
                    self.train_means.add(f"train/{name}", value, batch.size)
        return loss  # type: ignore[no-any-return]

    def units(self, batch: Batch) -> Any:
        """What the loss of `batch` is a mean over (samples, tokens, elements): a number or a tensor of one."""
        return self._count_units(batch.targets) if self._count_units is not None else batch.size

    def per_unit(self, loss: Any, units: Any) -> Any:
        """The mean over units that is recorded, whether the criterion gives a mean or a sum over them."""
        if not self._sums_losses:
            return loss
        if isinstance(loss, float):  # a number over a tensor would be rounded to float32
            units = float(units)
        return loss / units if isinstance(units, torch.Tensor) or units else loss

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss` to the parameters' gradients."""
        if self.precision.scaler is not None:
            loss = self.precision.scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Clip, set the scheduled learning rate, step the optimizer, move the average, clear the gradients."""
        if self._gradients_are_usable():
            factor = self.schedule(self.state.updates)
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            self._step_optimizer()
            self.state.skipped_in_row = 0
            if self.ema is not None:
                self.ema.update(self.state.updates + 1)
        if self.precision.scaler is not None:
            self.precision.scaler.update()
        self.clear_gradients()

    def clear_gradients(self) -> None:
        """Set every gradient to None, also of parameters that no optimizer has: they would grow without end."""
        for parameter in self._with_gradient:
            parameter.grad = None

    def advance(self, batch: Batch) -> None:
        """Count a step."""
        self.state.step += 1
        self.state.samples += batch.size
        self._last_batch = batch

    # ---------------------------------------------------------------- numbers that are not finite

    def _reject_loss(self, batch: Batch) -> None:
        if self.settings.nan_policy == "stop":
            before = guard.describe_batch(self._last_batch) if self._last_batch is not None else "no batch"
            reason = guard.explain_bad_loss(self.model, batch, lambda: self._repeat_forward(batch), before)
            raise guard.NonFiniteError(f"the loss of step {self.state.step + 1} is not finite: {reason}")
        self._skip(f"the loss is not finite ({guard.describe_batch(batch)})")
        self.clear_gradients()

    def _repeat_forward(self, batch: Batch) -> None:
        seed_torch(derive(self._step_seed, self.state.step), self.device)
        self.forward = self.model  # compiled code would not call the hooks that look at activations
        with self.precision.autocast():
            self.training_step(batch)

    def _gradients_are_usable(self) -> bool:
        """Unscale and clip; false if this step's update must be left out."""
        scaler, clip = self.precision.scaler, self.settings.clip_norm
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        skips = scaler is not None or self.settings.nan_policy == "skip"
        if clip is None and not skips:
            return True
        norm = clip_gradient_norm(self._trained, math.inf if clip is None else clip)
        if clip is not None:
            self.train_means.add("train/grad_norm", norm, 1.0)
        if not (skips or self.device.type == "cpu") or math.isfinite(norm.item()):
            return True
        if scaler is not None:  # the scaler's search for a scale that does not overflow is no fault
            self.state.skipped += 1
            return False
        where = guard.first_bad_gradient(self.model) or "a gradient is not finite"
        if self.settings.nan_policy == "stop":
            raise guard.NonFiniteError(f"step {self.state.step + 1}: {where}")
        self._skip(where)
        return False

    def _skip(self, reason: str) -> None:
        self.state.skipped += 1
        self.state.skipped_in_row += 1
        self.recorder.warn(f"step {self.state.step + 1} is left out: {reason}")
        if self.state.skipped_in_row > self.settings.max_skips:
            raise guard.NonFiniteError(f"{self.state.skipped_in_row} steps in a row were left out; the last: {reason}")

    # ---------------------------------------------------------------- measuring

    def log(self) -> None:
        """Write the training record of the steps since the last one."""
        means, bad = self.train_means.take()
        if "train/loss" in bad and self.settings.nan_policy == "stop":
            where = guard.first_bad_weight(self.model) or "all weights are finite"
            raise guard.NonFiniteError(
                f"the loss became NaN or infinite within the {self.settings.log_every} steps before step "
                f"{self.state.step} (at micro-batch {bad['train/loss'] + 1} of them): {where}"
            )
        record: dict[str, float] = {"epoch": self.epoch, "samples": self.state.samples, **means}
        record |= self._learning_rates()
        if self.state.skipped:
            record["skipped"] = self.state.skipped
        self.recorder.scalars(record, self.state.step)
        self.recorder.timing(self.state, self.device)
        self.recorder.note(f"loss {means.get('train/loss', math.nan):.4f}")
        for hook in self.hooks.log:
            hook(self, record)

    def _learning_rates(self) -> dict[str, float]:
        """`lr`, and beside it the rates of groups that a pattern chose (`lr/<pattern>`) or that began with another."""
        groups = self.optimizer.param_groups
        main = next((group for group in groups if "name" not in group), groups[0])
        rates = {"lr": main["lr"]}
        for number, group in enumerate(groups):
            if group is not main and ("name" in group or group["initial_lr"] != main["initial_lr"]):
                rates[f"lr/{group.get('name', number)}"] = group["lr"]
        return rates

    def validate(self) -> dict[str, float]:
        """Measure the model, and its average if one is kept, on the validation data."""
        self.state.validated_step = self.state.step
        if self.val_data is None:
            return {}
        with self.recorder.paused():
            scores = {f"val/{name}": value for name, value in self.evaluate().items()}
            if self.ema is not None:
                averaged = self.evaluate(model=self.ema.model)
                scores |= {f"val/ema/{name}": value for name, value in averaged.items()}
            if self.monitor not in scores:
                raise UsageError(f"trainer.monitor is '{self.monitor}', and validation gives {', '.join(scores)}")
            early = self.settings.early_stopping
            better = self.state.judge(scores[self.monitor], self.mode, early.min_delta if early else 0.0)
            self.recorder.scalars({"epoch": self.epoch, **scores}, self.state.step)
            self.recorder.scores(self.state, self.epoch, scores, better=better)
            for hook in self.hooks.validation_end:
                hook(self, scores)
        return scores

    def evaluate(self, data: Any = None, *, model: nn.Module | None = None) -> dict[str, float]:
        """The loss and metrics of `model` (default: the one in training) on `data` (default: the validation data).

        Nothing of the run changes: not the weights, nor the random generators, nor the mode of a module.
        """
        data = self.val_data if data is None else data
        if data is None:
            raise UsageError(
                "there is no data to evaluate on", remedy="give val_data to the trainer, or data to evaluate"
            )
        for metric in self.metrics.values():
            if hasattr(metric, "to"):
                metric.to(self.device)
        with isolated(derive(self.seed, "evaluation")):
            return evaluate(
                self.model if model is None else model,
                self.eval_batches(data),
                self.evaluation_step,
                self.metrics,
                limit=DEBUG_BATCHES.get(self.settings.debug or ""),
            )

    def eval_batches(self, data: Any) -> Iterator[Batch]:
        """Batches of `data` in order, each sample once."""
        _, feeder = self._eval_feeders.get(id(data), (None, None))
        if feeder is None:
            micro = max(self.batch_size // self.settings.accumulate, 1)
            feeder = EvalFeeder(
                data,
                batch_size=self.loader.eval_batch_size or 4 * micro,
                workers=self.loader.workers,
                prefetch=self.loader.prefetch,
                device=self.device,
                transform=self.eval_transform,
                batch_transform=self.batch_transform,
                seed=self.seed,
                device_resident=self.loader.device_resident,
            )
            self._eval_feeders[id(data)] = data, feeder  # `data` is held, so that no other gets its id
        return (self.precision.cast(batch) for batch in feeder.batches())

    def evaluation_step(self, model: nn.Module, batch: Batch) -> tuple[Any, torch.Tensor | None, Any]:
        """The outputs of a batch, its loss (None without a criterion), and the units the loss is a mean over."""
        units = self.units(batch)
        with self.precision.autocast():
            outputs = model(batch.inputs)
            loss = self.per_unit(self.compute_loss(outputs, batch), units) if self.criterion is not None else None
        return outputs, loss, units

    # ---------------------------------------------------------------- beginning, saving, ending

    def save(self) -> None:
        """Write a checkpoint of this step; the disk's part of the work happens in the background."""
        if not guard.weights_are_finite(self.model):
            where = guard.first_bad_weight(self.model)
            raise guard.NonFiniteError(f"after step {self.state.step} {where}; no checkpoint of it is written")
        if self.store is None or self.run_folder is None:
            return
        for hook in self.hooks.checkpoint:
            hook(self)
        with self.recorder.paused():
            validated = self.state.validated_step == self.state.step
            self.store.save(
                self.state.step,
                snapshot.take(self),
                score=self.recorder.last_scores.get(self.monitor) if validated else None,
                flush=[self.run_folder.metrics_file],
            )
        self._saved_step = self.state.step
        if failure := self.store.failed():
            self.recorder.warn(f"{failure}; training goes on")
            self._saved_step = -1  # it may be this very step: the end of the run tries again

    def _should_save(self, step: int) -> bool:
        best = self.state.best_step == step and self.checkpoint.keep_best > 0
        return self.due.checkpoint(step) or best or self.preemption is not None or self._save_clock.struck()

    def _begin(self, resume: bool, folder: RunFolder | None) -> None:
        self.run_folder = folder
        self.recorder = Recorder(self.run_folder, self.monitor, progress=self.settings.progress)
        self._saved_step = -1
        self._save_clock = Clock(60.0 * self.checkpoint.every_minutes if self.checkpoint.every_minutes else math.inf)
        if self.run_folder is not None:
            self.store = CheckpointStore(
                self.run_folder.checkpoints, settings=self.checkpoint, mode=self.mode, warn=self.recorder.warn
            )
            if resume:
                newest = self.store.newest()
                self.recorder.rewind(snapshot.restore(self, newest) if newest is not None else 0)
        if callable(self.trackers):
            resume_step = (self.state.step and self.state.step + 1) if resume else None
            self.recorder.trackers = self.trackers(self.run_folder.path, resume_step) if self.run_folder else ()
        else:
            self.recorder.trackers = self.trackers
        self.recorder.open(self.state, self.total_steps, self.feeder.steps_per_epoch)
        self.model.train()
        for module in self.frozen:
            module.eval()
        for hook in self.hooks.fit_start:
            hook(self)

    def _after_step(self, step: int) -> None:
        for hook in self.hooks.step_end:
            hook(self)
        steps = self.feeder.steps_per_epoch
        if steps and step % steps == 0:
            for hook in self.hooks.epoch_end:
                hook(self)
        self.recorder.tick(self.state)

    def _start_epoch(self) -> None:
        # Not at the end of the epoch before: what a callback did there would be in that epoch's checkpoint, and be
        # done again by a run that resumes from it.
        steps = self.feeder.steps_per_epoch
        if self.hooks.epoch_start and steps and self.state.step % steps == 0:
            for hook in self.hooks.epoch_start:
                hook(self)

    def _end(self) -> None:
        if self.preemption is None:
            if self.train_means:
                self.log()
            if self.state.validated_step != self.state.step:
                self.validate()
            for hook in self.hooks.fit_end:
                hook(self)
        if self._saved_step != self.state.step:
            self.save()
        if self.preemption is None and self.settings.test_at_end:
            self.test()
        if self.store is not None:
            self.store.wait()
            if self._saved_step != self.state.step:
                raise CheckpointError(f"the last checkpoint, of step {self.state.step}, could not be saved")
        self.recorder.end(self.state, preemption=self.preemption, stop_reason=self.stop_reason)

    def test(self) -> dict[str, float]:
        """Measure the best checkpoint (without a run folder: the model as it is) on the test data."""
        if self.test_data is None:
            raise UsageError("there is no test data", remedy="set trainer.test_at_end to false")
        model = self.model
        if self.store is not None:
            self.store.wait()
            if (best := self.store.best()) is not None:
                model = snapshot.model_of(self, best)
        scores = {f"test/{name}": value for name, value in self.evaluate(self.test_data, model=model).items()}
        self.recorder.scalars({"epoch": self.epoch, **scores}, self.state.step)
        self.recorder.scores(self.state, self.epoch, scores, better=False)
        return scores

    def _fail(self, error: BaseException) -> None:
        for hook in self.hooks.error:
            hook(self, error)
        self.recorder.fail(self.state, error)

    def _close(self) -> None:
        self.feeder.close()
        for _, feeder in self._eval_feeders.values():
            feeder.close()
        self._eval_feeders.clear()
        if self.store is not None:
            try:
                self.store.close()
            except CheckpointError as failure:  # told, not raised: it must not hide what ended the run
                self.recorder.warn(str(failure))
        self.recorder.close()
