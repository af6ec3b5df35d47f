"""torch's fused Adam and AdamW kernels, called with lists that are kept from one step to the next."""

from __future__ import annotations

from collections.abc import Collection
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Adam, AdamW, Optimizer


class FusedPlan:
    """What the kernels of one fused Adam or AdamW are called with.

    The plan holds as long as the optimizer has the same groups, parameters and state, compared by identity,
    and the same parameters have gradients. Settings are read from the groups at each step.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._groups = list(optimizer.param_groups)
        self._members = [list(group["params"]) for group in self._groups]
        self._states = list(optimizer.state.values())
        self._without_gradient = [p for p in chain(*self._members) if p.grad is None]
        self._on_cuda = any(p.is_cuda for p in chain(*self._members))
        self._batches: list[_Batch] = []
        for group, members in zip(self._groups, self._members, strict=True):
            alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
            for parameter in members:
                if parameter.grad is not None:
                    alike.setdefault((parameter.device, parameter.dtype), []).append(parameter)
            for parameters in alike.values():
                states = [optimizer.state[parameter] for parameter in parameters]
                self._batches.append(_Batch(group, parameters, states))

    @classmethod
    def of(cls, optimizer: Optimizer) -> FusedPlan | None:
        """The plan of an optimizer that has made a step; None if its kernels are not called from here."""
        groups = optimizer.param_groups
        # These very classes: a subclass may do anything.
        if type(optimizer) not in (Adam, AdamW) or not all(map(_is_plain, groups)):
            return None
        plain = (Tensor, Parameter)  # distributed tensors and others of a type of their own are left to torch
        if not all(type(parameter) in plain for group in groups for parameter in group["params"]):
            return None
        return cls(optimizer)

    def step(self) -> bool:
        """Advance all parameters; False, with nothing done, if the plan no longer holds."""
        if not self._is_current():
            return False
        calls = []
        for batch in self._batches:
            lists = batch.lists()
            if lists is None:
                return False
            calls.append((batch, lists))
        for batch, lists in calls:
            batch.call(*lists)
        return True

    def _is_current(self) -> bool:
        optimizer, groups = self._optimizer, self._groups
        return (
            _same(optimizer.param_groups, groups)
            and _same(optimizer.state.values(), self._states)
            and all(_same(group["params"], own) for group, own in zip(groups, self._members, strict=True))
            and not any(parameter.grad is not None for parameter in self._without_gradient)
            # Within the capture of a CUDA graph, torch's step says what is wrong.
            and not (self._on_cuda and torch.cuda.is_current_stream_capturing())
        )


class _Batch:
    """Parameters of one group, device and dtype: what one call of a kernel updates."""

    def __init__(self, group: dict[str, Any], parameters: list[Tensor], states: list[dict[str, Any]]) -> None:
        self._group = group
        self._parameters = parameters
        self._states = states
        self._steps = [state["step"] for state in states]
        # The step counts, one tensor a parameter, come to lie in one block of memory, so that one addition
        # advances all of them; torch._foreach_add_ does them one by one on the CPU.
        self._block = torch.cat([step.reshape(1) for step in self._steps])
        for index, step in enumerate(self._steps):
            step.set_(self._block.untyped_storage(), index, step.size(), step.stride())

    def lists(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]] | None:
        """Gradients and both averages; None if something is not as it was."""
        if not _is_plain(self._group):
            return None
        gradients: list[Tensor] = []
        for parameter in self._parameters:
            gradient = parameter.grad
            if gradient is None or gradient.is_sparse:
                return None
            gradients.append(gradient)
        states = self._states
        try:
            means = [state["exp_avg"] for state in states]
            squares = [state["exp_avg_sq"] for state in states]
            steps = [state["step"] for state in states]
        except KeyError:  # emptied by someone; torch's step fills it again
            return None
        return (gradients, means, squares) if _same(steps, self._steps) else None

    def call(self, gradients: list[Tensor], means: list[Tensor], squares: list[Tensor]) -> None:
        group = self._group
        beta1, beta2 = group["betas"]
        kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
        self._block.add_(1)
        kernel(
            self._parameters,
            gradients,
            means,
            squares,
            [],
            self._steps,
            lr=group["lr"],
            beta1=float(beta1),
            beta2=float(beta2),
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=group["maximize"],
        )


def _is_plain(group: dict[str, Any]) -> bool:
    """Whether a group's settings are such that its parameters can be updated from here."""
    return (
        group["fused"]
        and isinstance(group["lr"], (float, int))
        and "decoupled_weight_decay" in group  # which torch 2.6 has not
        and not (group["amsgrad"] or group["capturable"] or group["differentiable"])
    )


def _same(one: Collection[Any], other: Collection[Any]) -> bool:
    return len(one) == len(other) and all(map(is_, one, other))
