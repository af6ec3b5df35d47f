"""Outputs of inner layers of any model, by name, and a classifier on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from flambeau.config.project import find_project
from flambeau.errors import UsageError
from flambeau.models.norms import Norm, convert_norms
from flambeau.registry import load_part, register


class FeatureExtractor(nn.Module):
    """A model whose outputs are those of some of its layers: inputs to `{layer: tensor}`.

    Parameters that none of the layers depend on (a classifier that follows) get no gradient.

    Args:
        model: any module; its parameters keep their names, with `model.` before them.
        layers: dotted names of modules (`layer3`, `blocks.2`), each called once in a forward pass and giving a tensor.
        sample: inputs to try the model with, a batch of one; it is called in evaluation mode, and nothing changes.

    Attributes:
        shapes: of each layer's output for one sample, without the batch.
        channels: its features: dimension 1 of maps (N, C, ...), the last one of tokens (N, T, C).

    Raises:
        UsageError: the model has no such module, does not call it once, or gets no tensor from it.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], sample: Tensor) -> None:
        super().__init__()
        modules = dict(model.named_modules())
        for layer in layers:
            if not layer or layer not in modules:
                own = ", ".join(name for name, _ in model.named_children())
                raise UsageError(
                    f"{type(model).__name__} has no layer '{layer}'", remedy=f"it has {own}, and what is in these"
                )
        self.model = model
        self.layers = tuple(layers)
        with _left_as_it_is(model):
            features = self._features(sample)
            _freeze_unused(model, list(features.values()))
        self.shapes = {layer: tuple(value.shape[1:]) for layer, value in features.items()}
        self.channels = {
            layer: value.shape[-1] if value.ndim == 3 else value.shape[1] for layer, value in features.items()
        }

    def forward(self, inputs: Any) -> dict[str, Tensor]:
        return self._features(inputs)

    def _features(self, inputs: Any) -> dict[str, Tensor]:
        seen: dict[str, list[Any]] = {layer: [] for layer in self.layers}
        modules = dict(self.model.named_modules())
        hooks = [modules[layer].register_forward_hook(_keeping(seen[layer])) for layer in self.layers]
        try:
            self.model(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        for layer, outputs in seen.items():
            if len(outputs) != 1 or not isinstance(outputs[0], Tensor):
                what = (
                    f"is called {len(outputs)} times" if len(outputs) != 1 else f"gives a {type(outputs[0]).__name__}"
                )
                raise UsageError(
                    f"the layer '{layer}' of {type(self.model).__name__} {what}",
                    remedy="name a layer that is called once and gives a tensor",
                )
        return {layer: outputs[0] for layer, outputs in seen.items()}


@register.model("backbone")
class Backbone(nn.Module):
    """A classifier on a layer of another model: images (N, C, H, W) to logits (N, num_classes).

    The layer's output is averaged over the image (or over tokens) and goes through one linear layer, whose size is
    found out with one image of zeros.

    Args:
        model: the other model, with its name and arguments as in a section of its own:
            `{name: resnet, depth: 18}`, `{name: torchvision.models.resnet18}`,
            `{name: timm.create_model, model_name: resnet18}`.
        layer: dotted name of the module whose output is used: `layer3`, `blocks.2`.
        num_classes: outputs per image.
        input_shape: (C, H, W) of the images.
        norm: what its batch norms become.
        frozen: train the classifier alone; the other model is used as it is (see also `trainer.freeze`).
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        layer: str,
        num_classes: Annotated[int, Ge(1)] = 10,
        input_shape: Sequence[Annotated[int, Ge(1)]] = (3, 224, 224),
        norm: Norm = "batch",
        frozen: bool = False,
    ) -> None:
        super().__init__()
        body = convert_norms(_build(model), norm)
        self.body = FeatureExtractor(body, [layer], torch.zeros(1, *input_shape))
        self.layer = layer
        if frozen:
            self.body.requires_grad_(False)
        self.head = nn.Linear(self.body.channels[layer], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images)[self.layer]
        if features.ndim == 3:
            features = features.mean(dim=1)
        elif features.ndim > 3:
            features = features.flatten(2).mean(dim=2)
        logits: Tensor = self.head(features)
        return logits


def _build(values: Mapping[str, Any]) -> nn.Module:
    """The model that `{name: ..., argument: ...}` says."""
    arguments = dict(values)
    name = arguments.pop("name", None)
    if not isinstance(name, str):
        raise UsageError("model.model has no `name`", remedy="write {name: resnet, depth: 18}")
    part = load_part("model", name, find_project().root)
    try:
        model: Any = part(**arguments)
    except TypeError as error:
        raise UsageError(f"model.model: {name}: {error}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"model.model: {name} gives a {type(model).__name__}, not an nn.Module")
    return model


def _keeping(outputs: list[Any]) -> Any:
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.append(output)

    return keep


@contextmanager
def _left_as_it_is(model: nn.Module) -> Iterator[None]:
    """Call a model in evaluation mode: running statistics, modes and torch's random numbers stay as they were."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _freeze_unused(model: nn.Module, features: Sequence[Tensor]) -> None:
    """Let parameters that no feature depends on want no gradient: of several processes all would wait for one."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    roots = [feature.sum() for feature in features if feature.requires_grad]
    if not trained or not roots:
        return
    gradients: Sequence[Tensor | None] = torch.autograd.grad(roots, trained, allow_unused=True)
    for parameter, gradient in zip(trained, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)
