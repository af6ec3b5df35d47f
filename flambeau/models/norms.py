"""Batch norms exchanged for norms that look at one sample alone."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

Norm = Literal["batch", "group", "instance"]


def convert_norms(model: nn.Module, to: Norm, *, groups: int = 32) -> nn.Module:
    """Replace each batch norm of a model, in place, by a group norm or an instance norm.

    Scale and shift stay the same parameters, so an optimizer that has them goes on to step them; running statistics go.
    Made for small batches (Wu and He, 2018, "Group normalization") and for images whose contrast says nothing
    (Ulyanov et al., 2016, "Instance normalization").

    Args:
        to: `group`, `instance`, or `batch`, which leaves the model as it is.
        groups: groups of channels; a layer whose channels they do not divide has the greatest common divisor.

    Returns:
        The model; a batch norm itself becomes another module.
    """
    if to == "batch":
        return model
    if isinstance(model, nn.modules.batchnorm._BatchNorm):
        return _converted(model, to, groups)
    for name, child in model.named_children():
        converted = convert_norms(child, to, groups=groups)
        if converted is not child:
            setattr(model, name, converted)
    return model


@torch.no_grad()
def _converted(norm: nn.modules.batchnorm._BatchNorm, to: Norm, groups: int) -> nn.GroupNorm:
    # An instance norm is a group norm with a channel a group, and needs no class for each number of dimensions.
    number = math.gcd(groups, norm.num_features) if to == "group" else norm.num_features
    converted = nn.GroupNorm(number, norm.num_features, eps=norm.eps, affine=norm.affine)
    if norm.affine:
        converted.weight, converted.bias = norm.weight, norm.bias
    return converted.train(norm.training)
