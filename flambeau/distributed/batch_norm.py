"""Batch normalisation over the samples of all processes, on any device.

torch's `SyncBatchNorm` refuses tensors on the CPU, and it averages over processes as if each had samples of its own.
Here the statistics are those of the global batch: processes may hold different numbers of samples, or none that count.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase

from flambeau.errors import UsageError

_HALF = (torch.bfloat16, torch.float16)


class SyncBatchNorm(_BatchNorm):
    """Batch norm whose statistics, in training mode, are of the inputs of all processes together.

    Input (N, C, ...) with any N in each process, 0 too. One all-reduce in the forward pass and one in the backward
    pass, over the default process group; a single process, or evaluation mode, does what torch's batch norm does.
    Statistics of half-precision inputs are taken in float32. There is no second derivative (as in torch's own): a
    penalty on gradients needs `trainer.sync_batch_norm: false`.

    Attributes:
        synced: False: the statistics are of this process's input alone, without a collective; see `unsynced`.
        counted: False: this process's input is normalised like the others' and adds nothing; see `uncounted`.

    Raises:
        ValueError: there is one value a channel in the whole batch, of which there is no variance.
    """

    synced = True
    counted = True

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected an input of at least 2 dimensions (got {input.dim()})")

    def forward(self, input: Tensor) -> Tensor:
        several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
        if not (self.training and several):
            return super().forward(input)
        self._check_input_dim(input)
        mean, variance, count = _statistics(input.detach(), counted=self.counted or not self.synced, synced=self.synced)
        waits = input.is_cuda or torch.compiler.is_compiling()  # asking would wait for the device, or break the graph
        if self.synced and not waits and count.item() <= 1:
            raise ValueError(f"batch norm needs more than 1 value a channel in the whole batch; input {input.shape}")
        if self.track_running_stats:
            self._follow(mean, variance * (count / (count - 1).clamp(min=1)))
        dtype = torch.float32 if input.dtype in _HALF else input.dtype
        mean, variance = mean.to(dtype), variance.to(dtype)
        arguments = (input, self.weight, self.bias, mean, variance, count, self.eps, self.counted, self.synced)
        return _Normalize.apply(*arguments)  # type: ignore[no-any-return, no-untyped-call]

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards the batch's; without a momentum they are means over all batches."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        weight = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(variance.to(self.running_var.dtype), weight)


class SyncBatchNorm1d(SyncBatchNorm, nn.BatchNorm1d):
    """For inputs (N, C) and (N, C, L)."""

    _check_input_dim = nn.BatchNorm1d._check_input_dim


class SyncBatchNorm2d(SyncBatchNorm, nn.BatchNorm2d):
    """For inputs (N, C, H, W)."""

    _check_input_dim = nn.BatchNorm2d._check_input_dim


class SyncBatchNorm3d(SyncBatchNorm, nn.BatchNorm3d):
    """For inputs (N, C, D, H, W)."""

    _check_input_dim = nn.BatchNorm3d._check_input_dim


_SYNCED: dict[type[nn.Module], type[SyncBatchNorm]] = {
    nn.BatchNorm1d: SyncBatchNorm1d,
    nn.BatchNorm2d: SyncBatchNorm2d,
    nn.BatchNorm3d: SyncBatchNorm3d,
    nn.SyncBatchNorm: SyncBatchNorm,
}


def convert(model: nn.Module) -> None:
    """Make the batch norms of `model` take their statistics over all processes.

    Each module stays the object that it is, with its parameters, buffers, hooks and modes; only its class changes.
    `local_norms` tells which are left as they are.

    Raises:
        UsageError: a lazy batch norm has not seen an input yet.
    """
    for name, module in model.named_modules():
        if isinstance(module, _LazyNormBase):
            raise UsageError(
                f"'{name}' is a {type(module).__name__}, whose size is not known before the first batch",
                remedy="give it its number of features, or call the model with a sample before it is trained",
            )
        synced = _SYNCED.get(type(module))
        if synced is not None and getattr(module, "process_group", None) is None:
            module.__class__ = synced


def local_norms(model: nn.Module) -> list[str]:
    """Names of batch norms in training whose statistics are not over all processes.

    After `convert` these are classes of one's own, which may compute what they like, and torch's SyncBatchNorm over a
    part of the processes.
    """
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm) and module.training
    ]


def unsynced(model: nn.Module) -> AbstractContextManager[None]:
    """Batch norms without collectives while the block runs: for a trial that this process makes alone."""
    return _switched(model, "synced")


def uncounted(model: nn.Module) -> AbstractContextManager[None]:
    """While the block runs, this process's inputs count nothing in the statistics of batch norms: a borrowed row.

    The backward pass needs no context, unless the forward pass is repeated in it (activation checkpointing).
    """
    return _switched(model, "counted")


@contextmanager
def _switched(model: nn.Module, switch: str) -> Iterator[None]:
    modules = [module for module in model.modules() if isinstance(module, SyncBatchNorm)]
    for module in modules:
        setattr(module, switch, False)
    try:
        yield
    finally:
        for module in modules:
            setattr(module, switch, True)


@torch.no_grad()
def _statistics(x: Tensor, *, counted: bool, synced: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel over all processes, and the values in a channel, in float64.

    Each process takes its own mean and variance first, in the input's arithmetic (float32 for half precision), so no
    large squares are subtracted there. The sums that are then added up are of float64, which leaves float32 inputs
    their full accuracy as long as a channel's mean is less than some 10,000 of its standard deviations.
    """
    channels = x.shape[1]
    count = x.numel() // channels if counted else 0
    totals = torch.zeros(2 * channels + 1, dtype=torch.float64, device=x.device)
    if count:
        values = x.float() if x.dtype in _HALF else x
        mean, variance = (value.double() for value in torch.batch_norm_update_stats(values, None, None, 0.0))
        totals[:channels] = count * mean
        totals[channels:-1] = count * (variance + mean.square())
        totals[-1] = count
    if synced:
        distributed.all_reduce(totals)
    mean = totals[:channels] / totals[-1]
    variance = (totals[channels:-1] / totals[-1] - mean.square()).clamp_(min=0.0)
    return mean, variance, totals[-1]


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, where mean and variance are functions of all inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
        counted: bool,
        synced: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, mean, variance, count)
        ctx.eps, ctx.counted, ctx.synced = eps, counted, synced
        return F.batch_norm(x, mean, variance, _as(weight, mean), _as(bias, mean), training=False, eps=eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient as of constant statistics, and what flows through the statistics of the whole batch.

        With n = (x - mean) / std over all M values of a channel: dx = weight / std * (dy - sum(dy)/M - n sum(dy n)/M).
        """
        x, weight, bias, mean, variance, count = ctx.saved_tensors
        scale = _as(weight, mean)
        dtype, x, grad = x.dtype, x.to(mean.dtype), grad.to(mean.dtype)
        if x.numel():
            # torch's own backward pass in evaluation mode; its other two results are sum(dy n) and sum(dy).
            direct, normed_sum, plain_sum = torch.ops.aten.native_batch_norm_backward(
                grad.contiguous(), x.contiguous(), scale, mean, variance, None, None, False, ctx.eps, [True, True, True]
            )
        else:
            direct, normed_sum, plain_sum = torch.zeros_like(x), torch.zeros_like(mean), torch.zeros_like(mean)
        gradient = None
        if ctx.needs_input_grad[0]:
            sums = torch.stack([normed_sum, plain_sum]).double()
            if ctx.synced:
                distributed.all_reduce(sums)
            if ctx.counted or not ctx.synced:
                normed_mean, plain_mean = (sums / count).to(mean.dtype)
                inverse = (variance + ctx.eps).rsqrt()
                factor = inverse if scale is None else inverse * scale
                slope = factor * inverse * normed_mean
                shape = (1, -1) + (1,) * (x.dim() - 2)
                direct.addcmul_(x, slope.view(shape), value=-1).sub_((factor * plain_mean - slope * mean).view(shape))
            gradient = direct.to(dtype)
        weight_gradient = normed_sum.to(weight.dtype) if ctx.needs_input_grad[1] else None
        bias_gradient = plain_sum.to(bias.dtype) if ctx.needs_input_grad[2] else None
        return gradient, weight_gradient, bias_gradient, None, None, None, None, None, None


def _as(value: Tensor | None, like: Tensor) -> Tensor | None:
    return value if value is None else value.to(like.dtype)
