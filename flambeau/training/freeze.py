"""What of a model is not trained: for the whole run, or until a step.

What is frozen at a step is a function of the settings and the step, so nothing of it is in a checkpoint. Parameters
that are frozen for good are in no optimizer. Those that are frozen at first are in it from the beginning, in the groups
that they belong to, and stay as they are, without decay or momentum, as long as they get no gradient.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

from torch import nn

from flambeau.config.sections import TrainerSettings, UnfreezeSettings
from flambeau.errors import UsageError

NEVER = math.inf


class Freezing:
    """What of a model is frozen, and until which step.

    Frozen modules are in evaluation mode, so that dropout is off and the statistics of batch normalisation stand still,
    and their parameters get no gradient. `trainer.freeze_parameters` takes the gradient of single parameters only.

    Making one takes the gradient of what is frozen for good; `at` does the rest.

    Args:
        model: the model as it is trained.
        settings: `freeze`, `freeze_parameters` and `unfreeze` are read.
        steps_per_epoch: optimizer steps of an epoch; None for data without a length. Without it, what is frozen for
            good is known and when the rest is not.

    Raises:
        UsageError: a pattern matches nothing, a time is not clear, or nothing would be trained in the first step.
    """

    def __init__(self, model: nn.Module, settings: TrainerSettings, steps_per_epoch: int | None = 1) -> None:
        self._model = model
        self._step: int | None = None
        self.next: float = NEVER
        """The step after which something that is frozen is to be trained."""
        modules = [name for name, _ in model.named_modules() if name]
        parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        held = {name: name for pattern in settings.freeze for name in _matching(pattern, modules, "freeze", "module")}
        frozen_modules = [name for name in modules if any(name == top or name.startswith(f"{top}.") for top in held)]
        frozen = {name for name in parameters if name.rpartition(".")[0] in {*frozen_modules}}
        for pattern in settings.freeze_parameters:
            frozen |= set(_matching(pattern, parameters, "freeze_parameters", "parameter"))
        for item in settings.unfreeze:
            _check_unfreeze(item, [*frozen_modules, *frozen])

        def until(name: str) -> float:
            times = (_step_of(item, steps_per_epoch) for item in settings.unfreeze if _within(item.pattern, name))
            return min(times, default=NEVER)

        self._modules: dict[nn.Module, float] = {}
        for name in frozen_modules:
            module = model.get_submodule(name)
            self._modules[module] = max(self._modules.get(module, 0), until(name))
        self._names: dict[nn.Parameter, str] = {}
        self._parameters: dict[nn.Parameter, float] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name in frozen:  # one that is tied is frozen for as long as one of its names is
                self._parameters[parameter] = max(self._parameters.get(parameter, 0), until(name))
                self._names[parameter] = name
        for parameter, end in self._parameters.items():
            if end == NEVER:
                parameter.requires_grad_(False)
        self._check_something_is_left(settings)
        self._ends = sorted({end for end in (*self._modules.values(), *self._parameters.values()) if end != NEVER})

    @property
    def for_good(self) -> set[nn.Module]:
        """The modules that are frozen for the whole run."""
        return {module for module, end in self._modules.items() if end == NEVER}

    def changing_buffers(self) -> set[str]:
        """Buffers of modules that are frozen at first only: a forward pass may change them later."""
        changing = {id(b) for module, end in self._modules.items() if end != NEVER for b in module.buffers(False)}
        return {name for name, buffer in self._model.named_buffers() if id(buffer) in changing}

    def at(self, step: int) -> list[str]:
        """Make the model what it is after `step` steps: modes of all modules, gradients of what is frozen.

        Returns:
            Names of the parameters that are no longer frozen.
        """
        self._model.train()
        self._set_modes(self._model, step, frozen=False)
        thawed = []
        for parameter, end in self._parameters.items():
            if end == NEVER:
                continue
            if step >= end and (self._step is None or self._step < end):
                thawed.append(self._names[parameter])
            parameter.requires_grad_(step >= end)
        self._step = step
        self.next = next((end for end in self._ends if end > step), NEVER)
        return thawed

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Meanwhile everything that is ever trained is: a step then takes the most memory."""
        step = self._step
        if step is None or self.next == NEVER:
            yield
            return
        self.at(int(self._ends[-1]))
        try:
            yield
        finally:
            self.at(step)

    def _set_modes(self, module: nn.Module, step: int, *, frozen: bool) -> None:
        """Only where a module differs from the one around it: its own `train` may have its own idea of its parts."""
        for child in module.children():
            is_frozen = step < self._modules.get(child, 0)
            if is_frozen != frozen:
                child.train(not is_frozen)
            self._set_modes(child, step, frozen=is_frozen)

    def _check_something_is_left(self, settings: TrainerSettings) -> None:
        if self._parameters and all(
            parameter in self._parameters or not parameter.requires_grad for parameter in self._model.parameters()
        ):
            kind = "freeze" if settings.freeze else "freeze_parameters"
            raise UsageError(
                f"trainer.{kind}: nothing of the model would be trained in the first step",
                remedy="leave something out, such as the head",
            )


def find_modules(model: nn.Module, patterns: Sequence[str], key: str) -> list[nn.Module]:
    """The modules whose dotted names match one of the patterns of `trainer.<key>`.

    Raises:
        UsageError: a pattern matches none.
    """
    names = [name for name, _ in model.named_modules() if name]
    found = dict.fromkeys(name for pattern in patterns for name in _matching(pattern, names, key, "module"))
    return [model.get_submodule(name) for name in found]


def _matching(pattern: str, names: Sequence[str], key: str, kind: str) -> list[str]:
    """The names that a pattern of `trainer.<key>` matches."""
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        near = difflib.get_close_matches(pattern, names, n=3)
        hint = f"the nearest names are {', '.join(near)}" if near else f"the {kind}s are {', '.join(names)}"
        raise UsageError(f"trainer.{key}: '{pattern}' matches no {kind} of the model", remedy=hint)
    return found


def _within(pattern: str, name: str) -> bool:
    """Whether a pattern matches a name, or that of a module around it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:count]), pattern) for count in range(len(parts), 0, -1))


def _check_unfreeze(item: UnfreezeSettings, frozen: Iterable[str]) -> None:
    if (item.after_epochs is None) == (item.after_steps is None):
        both = "both `after_epochs` and `after_steps` are" if item.after_steps else "no time is"
        raise UsageError(
            f"trainer.unfreeze: {both} given for '{item.pattern}'", remedy="give either after_epochs or after_steps"
        )
    names = sorted(frozen)
    if not any(_within(item.pattern, name) for name in names):
        near = difflib.get_close_matches(item.pattern, names, n=3) or names[:5]
        hint = f"frozen are {', '.join(near)}" if near else "trainer.freeze and trainer.freeze_parameters name nothing"
        raise UsageError(f"trainer.unfreeze: '{item.pattern}' matches nothing that is frozen", remedy=hint)


def _step_of(item: UnfreezeSettings, steps_per_epoch: int | None) -> float:
    if item.after_steps is not None:
        return item.after_steps
    assert item.after_epochs is not None
    if steps_per_epoch is None:
        raise UsageError(
            f"trainer.unfreeze: the data has no known length, and '{item.pattern}' is frozen for epochs",
            remedy="give after_steps",
        )
    return item.after_epochs * steps_per_epoch
