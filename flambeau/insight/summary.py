"""A model as a table: its layers, their shapes and parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from flambeau.runtime.shards import class_name


def model_summary(model: nn.Module, inputs: Any = None, depth: int = 3) -> str:
    """The layers of a model with output shapes, parameters and multiplications (torchinfo's table), as text.

    The model is called once, in evaluation mode and without gradients. Modes are put back; what else its `forward`
    changes is not. Where torchinfo is not installed, there are no inputs or the model cannot be called with them,
    parameters are counted by module, and the reason is said.

    Args:
        model: any module.
        inputs: what it is called with: a tensor or a nested dict.
        depth: levels of modules that are shown.
    """
    if inputs is None or any(map(is_lazy, [*model.parameters(), *model.buffers()])):
        return count_parameters(model, depth)
    try:
        import torchinfo
    except ModuleNotFoundError as error:
        if error.name != "torchinfo":
            raise
        return count_parameters(model, depth) + "\n(with shapes: pip install 'flambeau[summary]')"
    modes = [(module, module.training) for module in model.modules()]
    own_forward, forward = vars(model).get("forward"), model.forward
    try:
        # It knows what to do with tensors, and not with all that is beside them.
        vars(model)["forward"] = lambda *_: forward(inputs)
        found = torchinfo.summary(
            model,
            input_data=list(_tensors(inputs)),
            depth=depth,
            device=_device_of(model),
            col_names=("output_size", "num_params", "mult_adds", "trainable"),
            row_settings=("var_names",),
            verbose=0,
        )
        return re.sub(r"Units\.(\w)\w+", r"\1", str(found))  # it shows the name of the unit where it means the unit
    except Exception as error:  # no reason for a run to end: its own call of the model will say what is wrong
        cause = error.__cause__ or error
        why = f"{type(cause).__name__}: {cause}".split("\n")[0]
        return f"{count_parameters(model, depth)}\n(without shapes: {why})"
    finally:
        del vars(model)["forward"]
        if own_forward is not None:
            vars(model)["forward"] = own_forward
        for module, training in modes:
            module.training = training
        # torchinfo keeps the layers of every model that it has seen, and with them the models.
        getattr(torchinfo.torchinfo, "_cached_forward_pass", {}).clear()


def count_parameters(model: nn.Module, depth: int = 3) -> str:
    """The parameters of a model by module, down to `depth` levels; a parameter that is shared counts once."""
    lines = [(class_name(model), *_counts(model))]
    for name, module in model.named_modules():
        if name and name.count(".") < depth:
            lines.append((f"{'  ' * (1 + name.count('.'))}{name} ({class_name(module)})", *_counts(module)))
    rows = [("module", "parameters", "trained"), *((name, _shown(all_), _shown(own)) for name, all_, own in lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = (f"{name:<{widths[0]}}  {count:>{widths[1]}}  {own:>{widths[2]}}" for name, count, own in rows)
    return "\n".join(text)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def _counts(module: nn.Module) -> tuple[int | None, int | None]:
    """Elements of all parameters, and of those that are trained; None where a first batch decides."""
    parameters = list(module.parameters())
    if any(map(is_lazy, parameters)):
        return None, None
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def _shown(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def _device_of(model: nn.Module) -> torch.device:
    tensor = next(iter([*model.parameters(), *model.buffers()]), None)
    return torch.device("cpu") if tensor is None else tensor.device
