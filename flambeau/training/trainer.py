"""The loop: the life of a run, in the order in which things happen.

`Trainer.fit` is the run, `Trainer.update` one optimizer step. A method of one's own overrides `training_step` (the
loss of a batch) or `update` (backward, clipping, optimizers) and keeps everything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flambeau.checkpoint import CheckpointStore
from flambeau.config.sections import CheckpointSettings, LoaderSettings, OptimizerSettings, TrainerSettings
from flambeau.criterions import reduction_of, unit_counter, weigh
from flambeau.data import Batch, Feeder
from flambeau.data.batch import Collate
from flambeau.data.parts import limit_parts
from flambeau.data.transforms import in_turn
from flambeau.distributed.replicas import Shares
from flambeau.distributed.sharding import check_optimizer, prepare_model, store_for
from flambeau.errors import CheckpointError, UsageError
from flambeau.metrics import Metric, prepare_metric
from flambeau.optim import build_optimizer
from flambeau.registry import register
from flambeau.run_folder import RunFolder
from flambeau.runtime.determinism import deterministic_algorithms, seed_torch
from flambeau.runtime.devices import resolve_device
from flambeau.runtime.seeds import derive, seed_numpy_and_random
from flambeau.runtime.signals import StopSignals
from flambeau.runtime.world import World, current_world
from flambeau.tracking import Tracker, TrackerFactory
from flambeau.training import ending, guard, measuring, snapshot
from flambeau.training.alternation import Alternation, schedule_by_turns
from flambeau.training.callback import Callback, Hooks, label_callbacks
from flambeau.training.data_record import Record, take_record, write_record
from flambeau.training.due import Due
from flambeau.training.ema import Ema
from flambeau.training.eval_data import EvalData
from flambeau.training.freeze import Freezing
from flambeau.training.micro_batch import check_micro_batch
from flambeau.training.monitor import choose_monitor
from flambeau.training.named_optimizers import NoStepper, make_steppers, with_gradient
from flambeau.training.options import apply_options
from flambeau.training.plan import (
    Scheduler,
    check_splits,
    global_batch,
    lengths_of_run,
    validation_samples,
)
from flambeau.training.precision import Precision
from flambeau.training.prepare import prepare, thaw
from flambeau.training.profiling import profiler
from flambeau.training.progress import Clock
from flambeau.training.recorder import Recorder
from flambeau.training.requests import Requests
from flambeau.training.running_means import RunningMeans
from flambeau.training.showing import Showing
from flambeau.training.start import StartPoints
from flambeau.training.state import TrainState
from flambeau.training.team import Team
from flambeau.training.where import run_folder_of


@register.trainer("default")
class Trainer(Showing):
    """Trains one model.

    Args:
        model: any module; called with a batch's inputs.
        train_data: map-style or iterable dataset of `(input, target)` or `{"inputs": ..., "targets": ...}`.
        criterion: called with `(outputs, targets)`; gives the loss, or the loss and a dict of scalars. Not needed by a
            subclass that computes its own.
        optimizer: any `torch.optim.Optimizer` over the model's parameters; default: AdamW with torch's defaults.
            Several by name, for an `update` of one's own that calls `optimize`.
        val_data: measured as the settings say, and at the end; decides which checkpoint is best.
        test_data: measured by `test_at_end`, once, with the best checkpoint.
        metrics: objects with `update(outputs, targets)`, `compute()` and `reset()`, by label.
        scheduler: a schedule, or what makes one when called with `total_steps=` (and, where it takes it,
            `steps_per_epoch=`); default: constant. One of all optimizers, or some by the optimizers' names.
        weight_decay_scheduler: the same for the weight decay; default: it stays as it is.
        callbacks: by label or in a row.
        trackers: where scalars go besides the run folder; or what makes them from `(run_dir, resume_step)`.
        train_transform, eval_transform: applied to each sample; seeded by (seed, epoch, index).
        batch_transform: applied to each batch on the device, in training and evaluation.
        train_batch_transform: applied after it, in training alone.
        collate: makes a batch of a list of samples, in the form of a sample; default: stacks them.
        run_dir: where the run is kept; None keeps nothing on disk.
        seed: of the order of samples, augmentation and dropout.
        device: `auto`, `cpu`, `0`, `cuda:1` ...
        world: the processes that train together; default: those that a launcher started.
        settings, loader, checkpoint: all other settings, see `flambeau.config.sections`.
        start_points: weights that a new run begins with; a resumed one does not need them. To fill a model at once,
            call `flambeau.load_pretrained`.
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
        optimizer: torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer] | None = None,
        *,
        val_data: Any = None,
        test_data: Any = None,
        metrics: Mapping[str, Metric] | None = None,
        scheduler: Scheduler | Mapping[str, Scheduler] = None,
        weight_decay_scheduler: Scheduler | Mapping[str, Scheduler] = None,
        callbacks: Mapping[str, Callback] | Iterable[Callback] = (),
        trackers: Sequence[Tracker] | TrackerFactory = (),
        train_transform: Callable[[Any], Any] | None = None,
        eval_transform: Callable[[Any], Any] | None = None,
        batch_transform: Callable[[Batch], Batch] | None = None,
        train_batch_transform: Callable[[Batch], Batch] | None = None,
        collate: Collate | None = None,
        run_dir: RunFolder | Path | str | None = None,
        seed: int = 0,
        device: str | torch.device = "auto",
        world: World | None = None,
        settings: TrainerSettings | None = None,
        loader: LoaderSettings | None = None,
        checkpoint: CheckpointSettings | None = None,
        start_points: StartPoints | None = None,
        **options: Any,
    ) -> None:
        self.settings, self.loader, self.checkpoint = apply_options(settings, loader, checkpoint, options)
        self.seed = seed
        self.world = current_world() if world is None else world
        self.device = resolve_device(device, self.world.local_rank if self.world.size > 1 else None)
        self.precision = Precision(self.settings.precision, self.device)
        self.precision.cast_model(model)
        self.model = prepare_model(model, self.settings, self.world, self.device)
        Freezing(self.model, self.settings)  # before an optimizer is made: it has nothing of what is frozen for good
        if isinstance(criterion, nn.Module):  # it may hold class weights
            self.precision.cast_model(criterion.to(self.device))
        self.criterion = criterion
        if optimizer is None:
            optimizer = build_optimizer(self.model, torch.optim.AdamW, {}, OptimizerSettings(), self.device)
        self.optimizers = dict(optimizer) if isinstance(optimizer, Mapping) else {"optimizer": optimizer}
        check_optimizer(self.model, *self.optimizers.values())
        self.metrics = {label: prepare_metric(label, metric) for label, metric in (metrics or {}).items()}
        self.callbacks = label_callbacks(callbacks)
        self.hooks = Hooks(self.callbacks)
        self.trackers = trackers
        self.ema = Ema(self.model, self.settings.ema) if self.settings.ema else None
        self.forward: Callable[..., Any] = torch.compile(self.model) if self.settings.compile else self.model
        self._plain_forward = self.forward

        self.train_data, self.val_data, self.test_data = limit_parts(self.loader, seed, train_data, val_data, test_data)
        check_splits(self.settings, val_data=val_data, test_data=test_data)
        self.eval_transform, self.batch_transform = eval_transform, batch_transform
        self.collate = collate
        self.feeder = Feeder(
            self.train_data,
            settings=self.loader,
            batch_size=self.batch_size,
            seed=seed,
            device=self.device,
            transform=train_transform,
            batch_transform=in_turn(batch_transform, train_batch_transform),
            rank=self.world.rank,
            ranks=self.world.size,
            collate=collate,
        )
        self.steps_per_epoch = epoch = self.settings.steps_per_epoch or self.feeder.steps_per_epoch
        self.freezing = Freezing(self.model, self.settings, epoch)
        self.data_values: dict[str, Any] = {}  # what the configuration took from the data, for the run's record
        self.start_points = start_points if start_points is not None else StartPoints()
        own_update = type(self).update is not Trainer.update
        check_micro_batch(self.settings, own_update=own_update)
        self.accumulate_found: int | None = None
        micro = self.settings.micro_batch
        self.accumulate = self.parts_of(micro) if isinstance(micro, int) else self.settings.accumulate
        self.planned_steps, self.total_steps = lengths_of_run(self.settings, epoch)  # of the schedules, of the run
        self.due = Due(self.settings, self.checkpoint, epoch, self.total_steps)
        self.scheduler = scheduler = schedule_by_turns(scheduler, self.settings, epoch)
        self.weight_decay_scheduler = weight_decay_scheduler
        self.monitor, self.mode = choose_monitor(self.settings, self.metrics)
        self.run_dir = run_dir
        self.run_folder: RunFolder | None = None
        self.recorder = Recorder(None, self.monitor, progress=False)
        self.replicas: Shares | None = None
        self.store: CheckpointStore | None = None
        self.state = TrainState()
        self.train_means = RunningMeans()
        self.stop_reason: str | None = None
        self.preemption: str | None = None
        self.team: Team | None = None
        self.requests = Requests(self)
        self.saves = False
        self.data_record: Record = {}
        self.own_fingerprint: Callable[[], str] | None = None
        self.force = False

        self.alternation = Alternation(self, self.settings.alternate) if self.settings.alternate else None
        self.steppers, self.named = make_steppers(self, optimizer, scheduler, own_update=own_update)
        self.stepper = NoStepper() if self.named else next(iter(self.steppers.values()))
        self.with_gradient = with_gradient(self.steppers, self.model)
        self._count_units = unit_counter(criterion) if criterion is not None else None
        self.sums_losses = criterion is not None and reduction_of(criterion) == "sum"
        self._waits_for_loss = self.device.type == "cpu" or self.settings.nan_policy == "skip"
        self._step_seed = derive(seed, "step")
        self._own_path = (self.world.rank,) if self.world.rank else ()
        # Of several processes none may leave a step alone: with `skip`, the gradients tell all of them.
        self._rejects_losses = self.world.size == 1 or self.settings.nan_policy == "stop"
        self.last_batch: Batch | None = None
        self.at_work: tuple[str, Batch] | None = None  # what the model is called for, and with what
        self._eval_data = EvalData(self)
        self.validation_samples = validation_samples(self.settings, self.loader, self.batch_size)
        for hook in self.hooks.setup:
            hook(self)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The only optimizer; of several, `optimizers` has each by its name."""
        if self.named is not None:
            raise UsageError("the trainer has several optimizers", remedy='take one: trainer.optimizers["NAME"]')
        return self.stepper.optimizer

    @property
    def batch_size(self) -> int:
        """Samples per optimizer step over all devices: the global batch."""
        return global_batch(self.loader, self.world.size)

    def parts_of(self, micro_batch: int) -> int:
        """Parts of `micro_batch` samples at most that the largest share of a batch is taken in."""
        return -(-self.batch_size // (self.world.size * micro_batch))

    @property
    def epoch(self) -> int:
        """The number of the epoch that the last step belongs to, from 1; 0 where the data has no known length."""
        steps = self.steps_per_epoch
        return -(-self.state.step // steps) if steps else 0

    # ---------------------------------------------------------------- the run

    def fit(self, *, resume: bool = False, force: bool = False) -> TrainState:
        """Train until the planned end, an early stop, or a signal.

        Args:
            resume: go on from the newest whole checkpoint in `run_dir`, if there is one.
            force: go on even if the data have changed since.

        Returns:
            Where the run stands; `preemption` says what ended it before its time, if anything did.
        """
        self.force = force
        with ExitStack() as stack:
            stack.enter_context(
                deterministic_algorithms(self.settings.deterministic, self.device, compiled=self.settings.compile)
            )
            if self.settings.detect_anomaly:
                stack.enter_context(torch.autograd.set_detect_anomaly(True))
            signals = stack.enter_context(StopSignals())
            self.team = Team.of(self, signals) if self.world.size > 1 else None
            folder = stack.enter_context(run_folder_of(self.run_dir, resume, self.device, self.world))
            stack.callback(self._close)
            try:
                self._begin(resume, folder)
                batches = self.recorder.timed(prepare(self, self.batches(self.state.step)), self.state)
                with profiler(self, folder) as profile_step:
                    while not self.finished():
                        if self.hooks.epoch_start:
                            self.hooks.begin_epoch(self)
                        batch = next(batches)
                        self.at_work = ("training", batch)
                        if self.state.step >= self.freezing.next:
                            thaw(self, batch)
                        self.seed_step()
                        if self.alternation is not None:
                            self.alternation.begin_step()
                        if self.replicas is not None:
                            self.replicas.begin(batch)
                        if self.named is None:
                            self.update(batch)
                        else:
                            self.named.update(batch)  # `update`, and what one `step` would do after it
                        self.advance(batch)

                        step = self.state.step
                        if self.team is not None:
                            self.team.beat(f"step {step}")
                        if self.due.log(step):
                            self.log()  # the only place that waits for the device
                        if self.due.validation(step):
                            self.validate()
                        self._after_step()
                        self.requests.settle(step, signals.received)
                        if self._should_save(step):
                            self.save()
                        if self.preemption:
                            break
                        profile_step()
                ending.conclude(self)
            except BaseException as error:
                cause = self.team.failed(error) if self.team is not None else None
                ending.fail(self, cause or error)
                if cause is not None:  # this process failed only because another one did
                    raise cause from error
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

    def stop(self, reason: str, *, everywhere: bool = False) -> None:
        """End the run after this step as a finished one; of several processes, after the step when all know of it.

        Args:
            everywhere: every process says so after this very step, so that it takes effect at once.
        """
        if everywhere:
            self.stop_reason = self.stop_reason or reason
        else:
            self.requests.add("stop", reason)

    def preempt(self, reason: str) -> None:
        """Save and leave after this step, to be resumed; of several processes, after the step when all know of it."""
        self.requests.add("preempt", reason)

    def keep(self) -> None:
        """Save after this step, and keep the checkpoint for good. To be called by every process after the same step."""
        self.saves, self.saved_step = True, -1
        if self.store is not None:
            self.store.keep(self.state.step)

    def paused(self) -> AbstractContextManager[None]:
        """Let this process be without progress for as long as the block takes: `trainer.hang_timeout` waits."""
        return self.team.paused() if self.team is not None else nullcontext()

    def seed_step(self) -> None:
        """Dropout and noise of a step are a function of (seed, step, rank), whatever ran before it."""
        self._begun_step = self.state.step + 1
        seed_torch(derive(self._step_seed, self.state.step, *self._own_path), self.device)
        if self.world.size > 1:  # a checkpoint holds the state of rank 0's generators alone
            seed_numpy_and_random(derive(self._step_seed, self.state.step, self.world.rank))

    # ---------------------------------------------------------------- one step

    def update(self, batch: Batch) -> None:
        """One optimizer step on one global batch: forward, backward, clip, optimizer, schedule."""
        micro_batches = batch.split(self.parts(batch)) if self.accumulate > 1 else [batch]
        units = [self.units(micro) if micro.size else 0 for micro in micro_batches]
        for number, (micro, share) in enumerate(zip(micro_batches, units, strict=True), 1):
            if self.replicas is not None:
                self.replicas.expect(micro, last=number == len(units))
            with self.precision.autocast():
                loss = self.training_step(micro)
            value = loss.item() if self._waits_for_loss else loss.detach()
            if isinstance(value, float) and not math.isfinite(value) and share:  # no units at all: 0/0, and no fault
                if self._rejects_losses:
                    return guard.reject_loss(self, micro)
            else:
                self.train_means.add("train/loss", self.per_unit(value, share), share)
            if self.replicas is not None:
                loss = self.replicas.weigh(loss, share)
            elif len(micro_batches) > 1 and not self.sums_losses:
                # The mean over the batch is the mean of its parts' means, weighted by their units.
                loss = weigh(loss, share) / sum(units)
            self.backward(loss)
        self.step()
        return None

    def parts(self, batch: Batch) -> int:
        """Micro-batches that this step's share is taken in: as many in every process, and none empty in all of them."""
        return min(self.accumulate, -(-batch.global_size // self.world.size))

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
        if not self.sums_losses:
            return loss
        if isinstance(loss, float):  # a number over a tensor would be rounded to float32
            units = float(units)
        return loss / units if isinstance(units, torch.Tensor) or units else loss

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss` to the parameters' gradients."""
        if self.precision.scaler is not None:
            loss = self.precision.scaler.scale(loss)
        if self.replicas is not None:
            loss = self.replicas.with_units(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Clip, set the scheduled learning rate, step the optimizer, move the average, clear the gradients."""
        if self.replicas is not None:
            self.replicas.finish()
        if guard.gradients_are_usable(self, self.stepper):
            for hook in self.hooks.gradients:
                hook(self)
            self.stepper.step(self.state.updates)
            self.state.skipped_in_row = 0
            if self.ema is not None:
                self.ema.update(self.state.updates + 1)
        if self.precision.scaler is not None:
            self.precision.scaler.update()
        self.clear_gradients()

    def optimize(
        self, name: str, loss: torch.Tensor, units: int | torch.Tensor | None = None, *, retain_graph: bool = False
    ) -> bool:
        """One step with one of several optimizers, in an `update` of one's own: only its parameters get a gradient.

        Args:
            name: of the optimizer.
            loss: a mean over samples, or over `units`; recorded as `train/loss/<name>`.
            units: what the loss is a mean over, in this process's share of the batch; default: its samples.
            retain_graph: keep what a further backward pass through the same outputs needs.

        Returns:
            Whether the step was made: not where a gradient is not finite and skipped, or all parameters are frozen.
        """
        if self.named is None:
            raise UsageError("optimize: the trainer's optimizer has no name", remedy="give optimizers by name")
        return self.named.optimize(name, loss, units, retain_graph=retain_graph)

    def clear_gradients(self) -> None:
        """Set every gradient to None, also of parameters that no optimizer has: they would grow without end."""
        for parameter in self.with_gradient:
            parameter.grad = None

    def advance(self, batch: Batch) -> None:
        """Count a step."""
        self.state.step += 1
        self.state.samples += batch.global_size
        self.last_batch = batch

    # ---------------------------------------------------------------- measuring

    def log(self) -> None:
        """Write the training record of the steps since the last one."""
        means, bad = self.train_means.take(self.world)
        losses = {name.removeprefix("train/"): mean for name, mean in means.items() if name.startswith("train/loss")}
        if self.settings.nan_policy == "stop":
            guard.reject_means(self, bad)
        record: dict[str, float] = {"epoch": self.epoch, "samples": self.state.samples, **means}
        record |= self.named.record() if self.named is not None else self.stepper.rates()
        if self.state.skipped:
            record["skipped"] = self.state.skipped
        self.recorder.scalars(record, self.state.step)
        self.recorder.timing(self.state, self.device)
        self.recorder.note("  ".join(f"{name} {mean:.4f}" for name, mean in losses.items()))
        for hook in self.hooks.log:
            hook(self, record)

    def validate(self) -> dict[str, float]:
        """Measure the model, and its average if one is kept, on the validation data."""
        return measuring.validate(self)

    def evaluate(
        self, data: Any = None, *, model: nn.Module | None = None, samples: int | None = None
    ) -> dict[str, float]:
        """The loss and metrics of `model` (default: the one in training) on `data` (default: the validation data).

        With `samples`, on the first ones alone.

        Nothing of the run changes: not the weights, nor the random generators, nor the mode of a module.
        """
        return measuring.measure(self, data, model, samples)

    def eval_batches(self, data: Any, samples: int | None = None) -> Iterator[Batch]:
        """Batches of `data` (its first `samples`) in order, each once; of several processes, each gets some of them."""
        return self._eval_data.batches(data, samples)

    def evaluation_step(self, model: nn.Module, batch: Batch) -> tuple[Any, torch.Tensor | None, Any]:
        """The outputs of a batch, its loss (None without a criterion), and the units the loss is a mean over."""
        units = self.units(batch)
        with self.precision.autocast():
            outputs = model(batch.inputs)
            loss = self.per_unit(self.compute_loss(outputs, batch), units) if self.criterion is not None else None
        return outputs, loss, units

    def prediction_step(self, model: nn.Module, batch: Batch) -> Any:
        """The outputs of a batch, for `flambeau predict`."""
        return model(batch.inputs)

    # ---------------------------------------------------------------- beginning, saving, ending

    def save(self) -> None:
        """Write a checkpoint of this step; the disk's part of the work happens in the background."""
        guard.require_finite_weights(self)
        if self.store is None or self.run_folder is None:
            return
        for hook in self.hooks.checkpoint:
            hook(self)
        if self.replicas is not None:
            self.replicas.share_buffers()
        with self.recorder.paused():
            snapshot.save(self, self.store, flush=[self.run_folder.metrics_file])
        self.saved_step, self.saves = self.state.step, False
        if failure := self.store.failed():
            self.recorder.warn(f"{failure}; training goes on")
            self.saved_step = -1  # it may be this very step: the end of the run tries again

    def _should_save(self, step: int) -> bool:
        best = self.state.best_step == step and self.checkpoint.keep_best > 0
        return self.due.checkpoint(step) or best or self.preemption is not None or self.saves

    def _begin(self, resume: bool, folder: RunFolder | None) -> None:
        self.run_folder = folder
        own_folder = folder if self.world.is_main else None  # rank 0 writes the record
        self.recorder = Recorder.of(self, own_folder)
        self.saved_step = -1
        self._save_clock = Clock(60.0 * self.checkpoint.every_minutes if self.checkpoint.every_minutes else math.inf)
        if folder is not None:
            keeping: dict[str, Any] = {"settings": self.checkpoint, "mode": self.mode, "warn": self.recorder.warn}
            self.store = store_for(self.model, self.world, folder.checkpoints, **keeping)
            self.data_record = take_record(self)
            if resume:
                newest = snapshot.chosen(self, self.store.newest)
                self.recorder.rewind(snapshot.restore(self, newest) if newest is not None else 0)
            if not self.state.step:
                write_record(self)
        self.start_points.load(self)
        if callable(self.trackers):
            resume_step = (self.state.step and self.state.step + 1) if resume else None
            self.recorder.trackers = self.trackers(own_folder.path, resume_step) if own_folder else ()
        elif self.world.is_main:
            self.recorder.trackers = self.trackers
        self.recorder.open(self.state, self.total_steps, self.steps_per_epoch, self.planned_steps)
        self.freezing.at(self.state.step)
        for hook in self.hooks.fit_start:
            hook(self)

    def _after_step(self) -> None:
        if self.hooks.step_end or self.hooks.epoch_end:
            self.hooks.end_step(self)
        self.recorder.tick(self.state)
        if self.world.is_main and self._save_clock.struck():
            self.requests.add("save", "checkpoint.every_minutes")

    def test(self) -> dict[str, float]:
        """Measure the best checkpoint (without a run folder: the model as it is) on the test data."""
        return measuring.test_best(self)

    def _close(self) -> None:
        self.feeder.close()
        self.forward, self.replicas = self._plain_forward, None
        if self.alternation is not None:
            self.alternation.end()
        if self.team is not None:
            self.team.close()
            self.team = None
        self._eval_data.close()
        if self.store is not None:
            try:
                self.store.close()
            except CheckpointError as failure:  # told, not raised: it must not hide what ended the run
                self.recorder.warn(str(failure))
        self.recorder.close()
