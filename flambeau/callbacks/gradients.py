"""Look at the sizes of gradients, weights and activations, module by module."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.hooks import RemovableHandle

from flambeau.errors import UsageError
from flambeau.registry import register
from flambeau.runtime.shards import class_name, group_of, is_sharded, local_parts
from flambeau.training.callback import Callback
from flambeau.training.trainer import Trainer


@register.callback("gradients")
class Gradients(Callback):
    """Record the norms of the gradients of modules every so many steps: `gradients/<module>`, `gradients/all`.

    A module's norm is that over the parameters of its own, without those of the modules within it; `all` is over the
    whole model. Gradients are those that the optimizer gets: added up over micro-batches and processes, unscaled and
    clipped. Norms are read from the device when the record is written; other steps cost nothing.

    Args:
        every: optimizer steps between two looks.
        modules: shell-style patterns of module names.
        weights: the norms of the weights too: `weights/<module>`.
        activations: the root mean square of the outputs of modules too: `activations/<module>`; of rank 0's share.
        histograms: the distributions go to the trackers (`gradients_histogram/<module>`); each waits for the device.
            Not of what lies in pieces over several processes.
    """

    def __init__(
        self,
        every: Annotated[int, Ge(1)] = 100,
        modules: Sequence[str] = ("*",),
        weights: bool = False,
        activations: bool = False,
        histograms: bool = False,
    ) -> None:
        self.every = every
        self.patterns = tuple(modules)
        self.weights, self.activations, self.histograms = weights, activations, histograms
        self._modules: dict[str, nn.Module] = {}
        self._hooks: list[RemovableHandle] = []

    def on_fit_start(self, trainer: Trainer) -> None:
        settings = trainer.settings
        compiled = settings.compile or (settings.fsdp is not None and settings.fsdp.compile_blocks)
        if self.activations and compiled:
            raise UsageError(
                "callbacks: the activations of a compiled model cannot be looked at",
                remedy="set activations to false, or compile to false",
            )
        self._modules = self._choose(trainer.model)
        self._watch(trainer)

    def on_step_end(self, trainer: Trainer) -> None:
        self._unwatch()  # the step may have been left out before its gradients were whole
        self._watch(trainer)

    def on_error(self, trainer: Trainer, error: BaseException) -> None:
        self._unwatch()

    def on_fit_end(self, trainer: Trainer) -> None:
        self._unwatch()

    def on_gradients(self, trainer: Trainer) -> None:
        self._unwatch()
        if trainer.current_step % self.every:
            return
        whole = [parameter.grad for parameter in trainer.with_gradient if parameter.grad is not None]
        self._note(trainer, "gradients", "all", whole, norm_only=True)
        for name, module in self._modules.items():
            own = list(module.parameters(recurse=False))
            self._note(trainer, "gradients", name, [p.grad for p in own if p.grad is not None])
            if self.weights:
                self._note(trainer, "weights", name, [parameter.detach() for parameter in own])

    def _note(
        self, trainer: Trainer, kind: str, name: str, tensors: Sequence[Tensor], *, norm_only: bool = False
    ) -> None:
        group = group_of(tensors)
        if not tensors or (group is None and not trainer.world.is_main):  # copies are alike in all processes
            return
        norm = _norm(tensors, group)
        if trainer.world.is_main:
            trainer.log_scalar(f"{kind}/{name}", norm)
            if self.histograms and not norm_only and not any(map(is_sharded, tensors)):
                trainer.log_histogram(
                    f"{kind}_histogram/{name}", lambda: torch.cat([tensor.flatten() for tensor in tensors])
                )

    def _watch(self, trainer: Trainer) -> None:
        if self.activations and trainer.world.is_main and (trainer.state.step + 1) % self.every == 0:
            self._hooks = [
                module.register_forward_hook(self._watching(trainer, name)) for name, module in self._modules.items()
            ]

    def _unwatch(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _watching(self, trainer: Trainer, name: str) -> Callable[..., None]:
        @torch.no_grad()
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                root = torch.linalg.vector_norm(output.float()) / math.sqrt(max(output.numel(), 1))
                trainer.log_scalar(f"activations/{name}", root)
                if self.histograms:
                    trainer.log_histogram(f"activations_histogram/{name}", output)

        return hook

    def _choose(self, model: nn.Module) -> dict[str, nn.Module]:
        named = {name: module for name, module in model.named_modules() if name}
        if any(True for _ in model.parameters(recurse=False)):  # the model itself has no name
            named = {class_name(model): model, **named}
        for pattern in self.patterns:
            if not any(fnmatchcase(name, pattern) for name in named) and pattern != "*":
                near = difflib.get_close_matches(pattern, named, n=1)
                raise UsageError(
                    f"callbacks: no module of the model is called '{pattern}'",
                    remedy=f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(list(named)[:12])}",
                )
        return {
            name: module
            for name, module in named.items()
            if any(fnmatchcase(name, pattern) for pattern in self.patterns)
        }


@torch.no_grad()
def _norm(tensors: Sequence[Tensor], group: Any) -> Tensor:
    """The Euclidean norm of all elements of `tensors`, over all processes of `group` where they lie in pieces."""
    norms = torch._foreach_norm(local_parts(tensors))
    square = torch.stack([norm.to(norms[0].dtype) for norm in norms]).square().sum()
    if group is not None:
        dist.all_reduce(square, group=group)
    return square.sqrt()
