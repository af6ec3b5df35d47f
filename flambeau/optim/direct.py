"""The optimizer's step without the wrappers around it: the same bits, in 0.6 of the time for small models.

`torch.optim.AdamW.step` is wrapped for hooks, for the profiler and for differentiable optimizers; the last of
these imports torch._dynamo. Below that, every step collects and groups the same lists of tensors anew. Where
none of this is in use, `direct_step` calls what lies beneath:

- for Adam and AdamW with `fused=True`, the kernels themselves (`flambeau.optim.fused`);
- for every other optimizer of torch, torch's own code inside the wrappers.

In all other cases it calls `optimizer.step()`. Which holds is decided at each step: hooks may be registered,
state loaded, groups added and settings changed at any time. State is in `optimizer.state` and settings are in
`optimizer.param_groups`, as ever. The decision 0006 in `docs/decisions` has the reasons and figures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from flambeau.optim.fused import FusedPlan


def direct_step(optimizer: Optimizer) -> Callable[[], None]:
    """A function that does exactly what `optimizer.step()` does, with less around it."""
    bare = _inside_wrappers(type(optimizer))
    if bare is None:
        return lambda: optimizer.step()  # looked up each time: the instance's step may be wrapped later
    return _DirectStep(optimizer, bare)


class _DirectStep:
    """One optimizer's step; `bare` is the function inside the wrappers of its class."""

    def __init__(self, optimizer: Optimizer, bare: Callable[[Optimizer], Any]) -> None:
        self._optimizer = optimizer
        self._bare = bare
        self._wrapped = type(optimizer).step
        self._plan: FusedPlan | None = None

    def __call__(self) -> None:
        if self._wrappers_in_use():
            self._optimizer.step()
            return
        grad_enabled = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)  # what torch.no_grad() does, at a tenth of its cost
        try:
            if self._plan is None or not self._plan.step():
                self._bare(self._optimizer)
                self._plan = FusedPlan.of(self._optimizer)
        finally:
            torch._C._set_grad_enabled(grad_enabled)

    def _wrappers_in_use(self) -> bool:
        optimizer = self._optimizer
        own = vars(optimizer)
        return bool(
            optimizer._optimizer_step_pre_hooks
            or optimizer._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
            or "step" in own  # torch's lr_scheduler, for one, wraps the step of the instance
            or type(optimizer).step is not self._wrapped
            or own.get("grad_scale") is not None  # within GradScaler.step
            or own.get("found_inf") is not None
            or optimizer.defaults.get("differentiable")
            or torch._C._autograd._profiler_enabled()  # the trace shows a step by the wrapper's mark
        )


def _inside_wrappers(cls: type[Optimizer]) -> Callable[[Optimizer], Any] | None:
    """torch's own code inside the two wrappers of a step; None if the step is not wrapped as expected."""
    expected = (
        (torch_optimizer, "_global_optimizer_pre_hooks"),
        (torch_optimizer, "_global_optimizer_post_hooks"),
        (torch._C._autograd, "_profiler_enabled"),
        (torch._C, "_set_grad_enabled"),
    )
    if not all(hasattr(module, name) for module, name in expected):
        return None
    profiled = cls.step  # the outer wrapper, marked as such, for hooks and the profiler
    switched = getattr(profiled, "__wrapped__", None)  # the inner one, which sets the gradient mode
    bare: Callable[[Optimizer], Any] | None = getattr(switched, "__wrapped__", None)
    if not getattr(profiled, "hooked", False) or bare is None:
        return None
    code = getattr(switched, "__code__", None)
    if code is None or code.co_name != "_use_grad" or not bare.__module__.startswith("torch.optim."):
        return None
    return bare
