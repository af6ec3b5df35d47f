"""Gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch import distributed as dist

from flambeau.runtime.shards import group_of, is_sharded, lie_apart, local_parts


@torch.no_grad()
def clip_gradient_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients together so that their Euclidean norm is at most `max_norm`; gives the norm before.

    `torch.nn.utils.clip_grad_norm_` to the bit, at half its cost for small models; like it, does not wait for an
    accelerator. A `max_norm` of infinity measures only, and leaves even gradients that are not finite as they are.
    Gradients that lie in pieces over several processes are measured as a whole, by one small exchange.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    gradients: list[Tensor] = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if any(map(is_sharded, gradients)):
        return _clip_sharded(gradients, max_norm)
    kinds = {(type(gradient), gradient.layout, gradient.device, gradient.dtype) for gradient in gradients}
    if len(kinds) != 1 or next(iter(kinds))[:2] != (Tensor, torch.strided):  # distributed, sparse, of several kinds
        if max_norm < math.inf or not gradients:
            return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        norms = [torch.linalg.vector_norm(gradient).to(gradients[0].device) for gradient in gradients]
        return torch.linalg.vector_norm(torch.stack(norms))  # type: ignore[no-any-return]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if max_norm == math.inf:
        return norm
    factor: Tensor = max_norm / (norm + 1e-6)
    if norm.is_cpu and factor.item() >= 1:
        return norm  # nothing to scale; on an accelerator, asking would wait for it
    torch._foreach_mul_(gradients, factor.clamp_(max=1.0))
    return norm


@torch.no_grad()
def clip_gradient_value(parameters: Iterable[Tensor], max_value: float, norm: Tensor) -> None:
    """Bring every element of the gradients into [-max_value, max_value].

    Args:
        norm: of these gradients. If it is not finite, no element may look as if it were: the gradients become NaN (on
            the CPU, where it costs nothing to look, they stay as they are).
    """
    gradients = local_parts(parameter.grad for parameter in parameters if parameter.grad is not None)
    if not gradients or (norm.is_cpu and not math.isfinite(norm.item())):
        return
    torch._foreach_clamp_min_(gradients, -max_value)
    torch._foreach_clamp_max_(gradients, max_value)
    if not norm.is_cpu:
        torch._foreach_mul_(gradients, torch.where(norm.isfinite(), 1.0, math.nan))


def _clip_sharded(gradients: list[Tensor], max_norm: float) -> Tensor:
    if not lie_apart(gradients):
        raise NotImplementedError("the norm of gradients of which some are sharded and others not, or otherwise")
    pieces = local_parts(gradients)
    norms = torch._foreach_norm(pieces)
    square = torch.stack([norm.to(norms[0].dtype) for norm in norms]).square().sum()
    dist.all_reduce(square, group=group_of(gradients))
    total: Tensor = square.sqrt()
    if max_norm < math.inf:
        torch._foreach_mul_(pieces, (max_norm / (total + 1e-6)).clamp_(max=1.0))
    return total
