"""Several optimizers of one model, each with parameters, schedule and losses of its own: `trainer.optimize`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from flambeau.config.sections import TrainerSettings
from flambeau.data import Batch
from flambeau.distributed.by_hand import HandReplicas
from flambeau.errors import UsageError
from flambeau.optim import Clipping
from flambeau.optim.shares import check_shares
from flambeau.training import guard
from flambeau.training.plan import Scheduler, make_schedule, scheduler_of
from flambeau.training.stepper import Stepper

if TYPE_CHECKING:
    from flambeau.training.trainer import Trainer

_REFUSED = {
    "fsdp": "train whole copies (DDP), or one optimizer",
    "accumulate": "take a smaller batch, or call backward for parts of it in the update",
    "micro_batch": "take a smaller batch, or call backward for parts of it in the update",
    "static_graph": "leave it out",
}


@dataclass
class NamedCounts:
    """What is counted of one of several optimizers."""

    skipped: int = 0
    """Steps of the run in which it made no update because a loss or gradient was not finite."""
    skipped_in_row: int = 0
    """Updates left out since the last one that was applied."""
    stepped: bool = field(default=False, repr=False)
    """Whether it has made an update in this step."""
    rejected: bool = field(default=False, repr=False)
    """Whether an update was left out in this step."""

    def skip(self) -> None:
        """Take note of an update that was left out."""
        self.rejected = True

    def end_step(self) -> None:
        """Count a step of the run."""
        self.skipped += self.rejected and not self.stepped
        self.stepped = self.rejected = False


class NamedOptimizers:
    """The optimizers of a trainer by name, and the step that an update of one's own makes with each.

    A schedule is a function of the steps of the run, less those that its optimizer had to skip: also where an optimizer
    makes several updates in a step, or one in several steps, it ends with the run.

    Raises:
        UsageError: a parameter is in two optimizers or in none; the trainer has no update of its own; a setting does
            not go together with several optimizers.
    """

    def __init__(
        self,
        trainer: Trainer,
        optimizers: Mapping[str, torch.optim.Optimizer],
        scheduler: Scheduler | Mapping[str, Scheduler],
        *,
        own_update: bool,
    ) -> None:
        if not own_update:
            raise UsageError(
                f"{type(trainer).__name__} makes its updates with one optimizer, and has several",
                remedy="override `update` and call optimize(name, loss) in it: trainer.name",
            )
        _check_settings(trainer.settings)
        check_shares(trainer.model, optimizers)
        if isinstance(scheduler, Mapping) and (unknown := scheduler.keys() - optimizers.keys()):
            raise UsageError(
                f"there is a scheduler of {', '.join(sorted(unknown))}, which is none of the optimizers",
                remedy=f"the optimizers are {', '.join(optimizers)}",
            )
        self._trainer = trainer
        self._batch: Batch | None = None
        self.counts = {name: NamedCounts() for name in optimizers}
        self.steppers = {
            name: Stepper(
                optimizer,
                counts=self.counts[name],
                scaler=trainer.precision.make_scaler(),
                name=name,
                **_plan_of(trainer, scheduler_of(scheduler, name), name),
            )
            for name, optimizer in optimizers.items()
        }

    def update(self, batch: Batch) -> None:
        """The trainer's update, in the run's precision; then the average of the weights moves, if any was changed."""
        trainer, state, counts = self._trainer, self._trainer.state, self.counts.values()
        self._batch = batch
        with trainer.precision.new_autocast():
            trainer.update(batch)
        if any(own.stepped for own in counts):
            state.skipped_in_row = 0
            if trainer.ema is not None:
                trainer.ema.update(state.updates + 1)
        elif any(own.rejected for own in counts):
            state.skip()
        for own in counts:
            own.end_step()

    def optimize(self, name: str, loss: torch.Tensor, units: Any, *, retain_graph: bool) -> bool:
        """See `Trainer.optimize`."""
        trainer, stepper = self._trainer, self._find(name)
        if self._batch is None:
            raise UsageError("optimize is called by an update, within fit")
        units = self._batch.size if units is None else units
        value = loss.item() if trainer._waits_for_loss else loss.detach()
        finite = not isinstance(value, float) or math.isfinite(value)
        if finite or not units:  # no units at all: 0/0, and no fault
            trainer.train_means.add(f"train/loss/{name}", trainer.per_unit(value, units), units)
        learning = [parameter for parameter in stepper.parameters if parameter.requires_grad]
        if not learning:  # all of them are frozen at present
            return False
        if not (finite or not units) and trainer._rejects_losses:
            guard.reject_named_loss(trainer, stepper, self._batch)
            return False
        with trainer.precision.paused():
            return self._step(stepper, learning, loss, units, retain_graph=retain_graph)

    def optimize_all(self, loss: torch.Tensor, units: Any) -> None:
        """One step with each of the optimizers from one loss; all make it, or none where a gradient is not finite."""
        trainer, steppers = self._trainer, list(self.steppers.values())
        if self._batch is None:
            raise UsageError("optimize_all is called by an update, within fit")
        if any(stepper.scaler is not None for stepper in steppers):
            raise UsageError(
                "trainer.precision fp16 does not go with one loss of several optimizers", remedy="take bf16 or fp32"
            )
        value = loss.item() if trainer._waits_for_loss else loss.detach()
        finite = not isinstance(value, float) or math.isfinite(value) or not units
        if finite:
            trainer.train_means.add("train/loss", trainer.per_unit(value, units), units)
        elif trainer._rejects_losses:
            for stepper in steppers:
                guard.reject_named_loss(trainer, stepper, self._batch)
            return
        learning = [parameter for stepper in steppers for parameter in stepper.parameters if parameter.requires_grad]
        with torch.autocast(trainer.device.type, enabled=False):
            self._backward(loss, learning, units)
            usable = [guard.gradients_are_usable(trainer, stepper) for stepper in steppers]
            if all(usable):
                for stepper in steppers:
                    counts = self.counts[str(stepper.name)]
                    stepper.step(trainer.state.step - counts.skipped)
                    counts.stepped, counts.skipped_in_row = True, 0
            else:  # those that could have made it left it out too
                for stepper in steppers:
                    stepper.counts.skip()
            _clear(learning)
        torch.clear_autocast_cache()

    def _backward(self, loss: torch.Tensor, learning: list[nn.Parameter], units: Any) -> None:
        """The gradients of the global batch of these parameters, from one loss."""
        replicas = self._trainer.replicas
        assert replicas is None or isinstance(replicas, HandReplicas)
        inputs: list[torch.Tensor] = list(learning)
        if replicas is not None:
            loss = replicas.with_units(replicas.weigh(loss, units))
            inputs.append(replicas.tally)
        _clear(learning)
        loss.backward(inputs=inputs)  # type: ignore[no-untyped-call]
        if replicas is not None:
            replicas.exchange(learning)

    def _step(
        self, stepper: Stepper, learning: list[nn.Parameter], loss: torch.Tensor, units: Any, *, retain_graph: bool
    ) -> bool:
        replicas = self._trainer.replicas
        assert replicas is None or isinstance(replicas, HandReplicas)
        inputs: list[torch.Tensor] = list(learning)
        if replicas is not None:
            loss = replicas.weigh(loss, units)
            inputs.append(replicas.tally)
        if stepper.scaler is not None:
            loss = stepper.scaler.scale(loss)
        if replicas is not None:
            loss = replicas.with_units(loss)
        _clear(learning)
        if loss.requires_grad:
            # Only these parameters get a gradient: those of the other optimizers are left alone.
            loss.backward(inputs=inputs, retain_graph=retain_graph)  # type: ignore[no-untyped-call]
        if all(parameter.grad is None for parameter in learning):
            raise UsageError(
                f"the loss given to optimize({stepper.name!r}, ...) depends on none of that optimizer's parameters",
                remedy="compute it from the output of its modules, without detach() or no_grad() on the way",
            )
        if replicas is not None:
            replicas.exchange(learning)
        usable = guard.gradients_are_usable(self._trainer, stepper)
        if usable:
            counts = self.counts[str(stepper.name)]
            stepper.step(self._trainer.state.step - counts.skipped)
            counts.stepped, counts.skipped_in_row = True, 0
        if stepper.scaler is not None:
            stepper.scaler.update()
        _clear(learning)
        return usable

    def _find(self, name: str) -> Stepper:
        if name not in self.steppers:
            raise UsageError(
                f"optimize({name!r}, ...): no optimizer is called so",
                remedy=f"the optimizers are {', '.join(self.steppers)}",
            )
        return self.steppers[name]

    def record(self) -> dict[str, float]:
        """Learning rates and skipped steps of each, for the log."""
        found: dict[str, float] = {}
        for name, stepper in self.steppers.items():
            for key, rate in stepper.rates().items():
                kind, slash, group = key.partition("/")
                found[f"{kind}/{name}{slash}{group}"] = rate
            if skipped := self.counts[name].skipped:
                found[f"skipped/{name}"] = skipped
        return found

    def state_dict(self) -> dict[str, Any]:
        """What moves of each optimizer, by name."""
        return {
            name: {
                "optimizer": stepper.optimizer.state_dict(),
                "scaler": stepper.scaler.state_dict() if stepper.scaler else None,
                "counts": asdict(self.counts[name]),
            }
            for name, stepper in self.steppers.items()
        }

    def load_counts(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave, but for the optimizers' own states."""
        for name, stepper in self.steppers.items():
            for key, value in state[name]["counts"].items():
                setattr(self.counts[name], key, value)
            if stepper.scaler is not None and state[name]["scaler"] is not None:
                stepper.scaler.load_state_dict(state[name]["scaler"])


class NoStepper(Stepper):
    """Stands where the only optimizer's would, if there are several: a call of `step` is a mistake."""

    def __init__(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        raise UsageError(
            "the trainer has several optimizers, and its own `step` and `update` are of one",
            remedy="call optimize(name, loss) for each in an `update` of your own",
        )


def make_steppers(
    trainer: Trainer,
    optimizer: torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer],
    scheduler: Scheduler | Mapping[str, Scheduler],
    *,
    own_update: bool,
) -> tuple[Mapping[str, Stepper], NamedOptimizers | None]:
    """What a trainer steps with: its one optimizer, or those that have names."""
    if isinstance(optimizer, Mapping):
        named = NamedOptimizers(trainer, optimizer, scheduler, own_update=own_update)
        return named.steppers, named
    if isinstance(scheduler, Mapping):
        raise UsageError("there are schedulers by name, and one optimizer", remedy="give one scheduler")
    plan = _plan_of(trainer, scheduler, "optimizer")
    return {"optimizer": Stepper(optimizer, counts=trainer.state, scaler=trainer.precision.scaler, **plan)}, None


def _plan_of(trainer: Trainer, scheduler: Scheduler, name: str) -> dict[str, Any]:
    """The schedules of an optimizer over the whole run, and the clipping of its gradients."""
    length = (trainer.planned_steps, trainer.feeder.steps_per_epoch)
    decay = scheduler_of(trainer.weight_decay_scheduler, name)
    return {
        "schedule": make_schedule(scheduler, *length),
        "decay": make_schedule(decay, *length) if decay is not None else None,
        "clipping": Clipping(trainer.model, trainer.settings),
    }


def with_gradient(steppers: Mapping[str, Stepper], model: nn.Module) -> list[nn.Parameter]:
    """All parameters that may get a gradient, those of the optimizers first."""
    trained = (parameter for stepper in steppers.values() for parameter in stepper.parameters)
    learning = (parameter for parameter in model.parameters() if parameter.requires_grad)
    return list(dict.fromkeys([*trained, *learning]))


def _clear(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _check_settings(settings: TrainerSettings) -> None:
    default = TrainerSettings()
    for name, remedy in _REFUSED.items():
        if getattr(settings, name) != getattr(default, name):
            raise UsageError(f"trainer.{name} does not go with several optimizers", remedy=remedy)
