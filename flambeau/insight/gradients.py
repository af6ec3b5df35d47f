"""Gradients of a backward pass, by name: of parameters, of modules' outputs, of any tensor on the way."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from flambeau.errors import UsageError


@contextmanager
def collect_gradients(model: nn.Module | None = None, *patterns: str, **tensors: Tensor) -> Iterator[dict[str, Tensor]]:
    """In the block, keep a copy of every gradient that is asked for, as backward passes give it.

        with collect_gradients(model, "head.weight", "body", hidden=hidden) as grads:
            loss.backward()
        grads["head.weight"], grads["body"], grads["hidden"]

    Args:
        model: whose parameters and modules the patterns name.
        patterns: shell-style. A parameter's name stands for its gradient, a module's for the gradient of its output
            (of an output that is a tuple or a dict: `name.0`, `name.key`), if it is called within the block. Without
            any: all parameters.
        **tensors: others to watch, by the name that they are to have.

    Gives:
        The gradients by name. What gets several (a shared weight, several backward passes) has their sum; of a module
        that is called several times, the last call's. What got none is not there.

    Raises:
        UsageError: a pattern that matches nothing, with the nearest name; or a tensor that wants no gradient.
    """
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, tensor in tensors.items():
            if not tensor.requires_grad:
                raise UsageError(f"the tensor '{name}' wants no gradient", remedy="call requires_grad_() on it first")
            stack.callback(tensor.register_hook(_adding(found, name)).remove)  # type: ignore[no-untyped-call]
        if model is not None:
            parameters, modules = matching(model, patterns)
            for name, parameter in parameters.items():
                if parameter.requires_grad:
                    stack.callback(parameter.register_hook(_adding(found, name)).remove)  # type: ignore[no-untyped-call]
            for name, module in modules.items():
                stack.callback(module.register_forward_hook(_watching_output(found, name)).remove)
        elif patterns:
            raise UsageError("names are of a model's parameters and modules, and there is no model")
        yield found


def matching(model: nn.Module, patterns: tuple[str, ...]) -> tuple[dict[str, nn.Parameter], dict[str, nn.Module]]:
    """The parameters and modules of `model` whose names match some pattern; without patterns, all parameters.

    Raises:
        UsageError: a pattern that matches nothing.
    """
    parameters = dict(model.named_parameters())
    if not patterns:
        return parameters, {}
    modules = {name: module for name, module in model.named_modules() if name}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in (*parameters, *modules)):
            near = difflib.get_close_matches(pattern, [*parameters, *modules], n=1)
            hint = f"did you mean '{near[0]}'?" if near else "model.named_modules() has the names"
            raise UsageError(f"nothing of the model is called '{pattern}'", remedy=hint)

    def wanted(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return (
        {name: parameter for name, parameter in parameters.items() if wanted(name)},
        {name: module for name, module in modules.items() if wanted(name)},
    )


def _adding(found: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    def hook(gradient: Tensor) -> None:
        # A copy: what is accumulated into a parameter's gradient may be this very memory.
        own = gradient.detach().clone()
        found[name] = found[name] + own if name in found else own

    return hook


def _watching_output(found: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        for label, tensor in _tensors(output, name):
            if tensor.requires_grad:
                found.pop(label, None)
                tensor.register_hook(_adding(found, label))  # type: ignore[no-untyped-call]

    return hook


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}")
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{name}.{index}")
