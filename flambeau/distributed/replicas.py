"""The same model in every process: one exchange a step brings the gradient of the whole global batch.

Each process computes the loss of its share of the batch. The gradient of the batch's mean is

    sum over processes of units * gradient  /  sum over processes of units,

where units are what a share's loss is a mean over (samples, tokens). Equal weights for all processes, torch's own
choice, give another gradient as soon as shares are ragged. The units travel as the gradient of one extra parameter in
the buckets of `DistributedDataParallel`, so that they cost no message of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flambeau.config.sections import TrainerSettings
from flambeau.criterions import weigh
from flambeau.data import Batch
from flambeau.distributed.batch_norm import SyncBatchNorm, convert
from flambeau.runtime.shards import local_parts
from flambeau.runtime.world import World

_BUFFERS = (
    "forward_sync_buffers"  # since torch 2.13
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


class Shares:
    """How the losses of the processes' shares are weighed, so that the mean over processes is that of the batch.

    Args:
        model: this process's.
        world: the processes.
        parameters: all that may get a gradient.
        sums: whether losses are sums over units, which are added up over processes, instead of means.
        changing: buffers that the forward pass changes, which go to all only before they are used outside training.
    """

    forward: Callable[..., Any]
    """What the model is called by."""

    def __init__(
        self,
        model: nn.Module,
        *,
        world: World,
        parameters: Sequence[nn.Parameter],
        sums: bool,
        changing: Sequence[torch.Tensor] = (),
    ) -> None:
        self.world = world
        self._changing = changing
        self._synced_norms = [module for module in model.modules() if isinstance(module, SyncBatchNorm)]
        self._parameters = parameters
        self._sums = sums
        self._wide = any(parameter.dtype == torch.float64 for parameter in parameters)
        self._scale = 1.0
        self._units: Any = 0
        self._expected = 0

    def begin(self, batch: Batch) -> None:
        """Before a step: a loss that nobody weighs by units counts as the mean over this process's samples."""
        self._scale = 1.0 if self._sums else batch.size * self.world.size / batch.global_size
        self._units = 0
        self._expected = batch.global_size

    def expect(self, part: Batch, *, last: bool) -> None:
        """Before the forward pass of one part of this process's share.

        Args:
            last: whether it is the last part of the step.
        """
        for norm in self._synced_norms:
            norm.counted = part.size > 0

    def weigh(self, loss: torch.Tensor, units: Any) -> torch.Tensor:
        """The loss of one part of this process's share, so scaled that the exchange makes it the global mean.

        Args:
            units: what the loss is a mean over; 0 for a borrowed row, which weighs nothing.
        """
        if self._sums:  # the exchange takes the mean over processes
            return loss * float(self.world.size) if not isinstance(units, int) or units else loss * 0.0
        if isinstance(units, torch.Tensor) and units.is_cpu:
            units = units.item() or units  # a number takes fewer operations, forward and backward
        self._scale = 1.0
        self._units = units
        if isinstance(units, int) and not units:
            return loss * 0.0  # still a function of the weights: every process takes part in the exchange
        if isinstance(units, torch.Tensor):
            return weigh(loss, units) * (self.world.size / self._expected)
        factor = units * self.world.size / self._expected
        return loss if factor == 1.0 else loss * factor

    def with_units(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss whose backward pass is to come; its units are on their way to all processes."""
        raise NotImplementedError

    def finish(self) -> None:
        """After the last backward pass of a step: make every gradient that of the whole global batch."""
        raise NotImplementedError

    def share_buffers(self) -> None:
        """Give all processes rank 0's values of the buffers that the forward pass changes."""
        copy_from_main(self._changing)

    def _divide_by(self, total: torch.Tensor, gradients: Sequence[torch.Tensor]) -> None:
        """Make gradients of sums over units, of which there are `total`, those of means."""
        if total.is_cpu:  # on an accelerator, asking would wait for it
            units = total.item()
            if units in (0.0, self._expected):
                return
            factor: Any = self._expected / units
        else:
            factor = torch.where(total > 0, self._expected / total, 1.0).squeeze(0)
        torch._foreach_mul_(local_parts(gradients), factor)


class Replicas(Shares):
    """One model's copies, one in each process.

    Args:
        model: this process's copy.
        forward: the model, or its compiled form.
        world: the processes.
        device: where the copy lies.
        parameters: all that may get a gradient.
        sums: whether losses are sums over units, which are added up over processes, instead of means.
        static_graph: see `trainer.static_graph`.
        broadcast_buffers: rank 0's buffers go to all before each forward pass.
        changing: buffers that the forward pass changes, which go to all only before they are used outside training.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[..., Any],
        *,
        world: World,
        device: torch.device,
        parameters: Sequence[nn.Parameter],
        sums: bool,
        static_graph: bool = False,
        broadcast_buffers: bool = False,
        changing: Sequence[torch.Tensor] = (),
    ) -> None:
        super().__init__(model, world=world, parameters=parameters, sums=sums, changing=changing)
        self._tally = nn.Parameter(torch.zeros((), dtype=torch.float64 if self._wide else torch.float32, device=device))
        self._replica = _Replica(model, forward, self._tally)
        buffers: dict[str, Any] = {_BUFFERS: broadcast_buffers}
        self._ddp = DistributedDataParallel(
            self._replica,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            static_graph=static_graph,
            init_sync=False,  # see `copy_from_main`
            **buffers,
        )
        self.forward = self._ddp
        if not static_graph:  # which is to be that of the model
            self._lay_out()

    def expect(self, part: Batch, *, last: bool) -> None:
        """Before the forward pass of one part of this process's share.

        Args:
            last: whether it is the last part of the step, with which gradients are exchanged.
        """
        super().expect(part, last=last)
        self._ddp.require_backward_grad_sync = last

    def with_units(self, loss: torch.Tensor) -> torch.Tensor:
        """`loss`, and the units as the gradient of the tally, which no scaler of losses touches."""
        if self._scale != 1.0:
            loss = loss * self._scale
        counted: torch.Tensor = self._tally * self._units
        return loss + counted.to(loss.dtype)

    @torch.no_grad()
    def finish(self) -> None:
        """After the last backward pass of a step: make every gradient that of the whole global batch."""
        if not self._replica.called:
            # The model was called part by part, which DistributedDataParallel does not see.
            tensors = [p.grad for p in (*self._parameters, self._tally) if p.grad is not None]
            mean_over_processes(tensors, self.world)
        self._replica.called = False
        tally = self._tally.grad
        self._tally.grad = None
        if tally is not None and not self._sums:
            gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
            self._divide_by(tally * self.world.size, gradients)

    def _lay_out(self) -> None:
        """Make an exchange of zeros, after which torch has laid the gradients out in buckets for good.

        It does so after the first exchange, in the order in which gradients came. With three processes and more the
        place of a gradient decides in which order it is added up, so without this the first step after a resume would
        differ in its last bits from the same step of a run that was never interrupted.
        """
        self._replica.empty = True
        self._ddp().backward()
        self._replica.empty = False
        for parameter in (*self._parameters, self._tally):
            parameter.grad = None


class _Replica(nn.Module):
    """What DistributedDataParallel wraps: the model, the tally, and whether a forward pass went this way."""

    _forward: Callable[..., Any]

    def __init__(self, model: nn.Module, forward: Callable[..., Any], tally: nn.Parameter) -> None:
        super().__init__()
        self.model = model
        self.tally = tally
        self.called = False
        self.empty = False
        object.__setattr__(self, "_forward", forward)  # not as a module: its parameters are the model's

    def forward(self, *inputs: Any, **named: Any) -> Any:
        if self.empty:  # nothing, as a function of all that is trained
            trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
            return 0.0 * torch.stack([parameter.reshape(-1)[:1].sum().float() for parameter in trained]).sum()
        self.called = True
        return self._forward(*inputs, **named)


def prepare_copy(model: nn.Module, settings: TrainerSettings, world: World) -> nn.Module:
    """One process's model as all have it: rank 0's weights, batch norm over all processes where that is asked for."""
    if world.size > 1:
        if settings.sync_batch_norm:
            convert(model)
        copy_from_main([*model.parameters(), *model.buffers()])
    return model


@torch.no_grad()
def copy_from_main(tensors: Iterable[torch.Tensor]) -> None:
    """Give every process rank 0's values of `tensors`, a few large messages in place of many small ones."""
    for some in _alike(list(tensors)):
        flat = torch.cat([tensor.reshape(-1) for tensor in some])
        dist.broadcast(flat, 0)
        parts = torch.split(flat, [tensor.numel() for tensor in some])
        for tensor, part in zip(some, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


@torch.no_grad()
def mean_over_processes(tensors: Sequence[torch.Tensor], world: World) -> None:
    """Replace each tensor by its mean over the processes, a few large messages in place of many small ones."""
    for some in _alike(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in some])
        dist.all_reduce(flat)
        flat /= world.size
        parts = torch.split(flat, [tensor.numel() for tensor in some])
        for tensor, part in zip(some, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def _alike(tensors: Sequence[torch.Tensor], limit: int = 1 << 26) -> list[list[torch.Tensor]]:
    """Tensors of one dtype and device, in their order, together up to `limit` bytes."""
    groups: list[list[torch.Tensor]] = []
    open_groups: dict[tuple[torch.dtype, torch.device], tuple[list[torch.Tensor], int]] = {}
    for tensor in tensors:
        key = (tensor.dtype, tensor.device)
        group, size = open_groups.get(key, ([], limit))
        if size >= limit:
            group, size = [], 0
            groups.append(group)
        group.append(tensor)
        open_groups[key] = (group, size + tensor.nbytes)
    return groups
