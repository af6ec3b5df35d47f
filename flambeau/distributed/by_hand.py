"""Copies of a model whose gradients are exchanged when asked for, without torch's `DistributedDataParallel`.

That wrapper wants one forward and one backward pass a step, with a gradient for each parameter. Where an update makes
several backward passes, for some of the parameters each, or calls the model part by part, or where other parameters
learn in other steps, the gradients are exchanged after a backward pass: as exact, in one message, and without the
wrapper's overlap of computation and exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from flambeau.data import Batch
from flambeau.distributed.replicas import Shares, mean_over_processes
from flambeau.runtime.world import World


class HandReplicas(Shares):
    """One model's copies, one in each process.

    Args:
        model: this process's copy.
        forward: the model, or its compiled form.
        world: the processes.
        device: where the copy lies.
        parameters: all that may get a gradient.
        sums: whether losses are sums over units, which are added up over processes, instead of means.
        broadcast_buffers: rank 0's buffers go to all before each step.
        changing: buffers that the forward pass changes.
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
        broadcast_buffers: bool = False,
        changing: Sequence[torch.Tensor] = (),
    ) -> None:
        super().__init__(model, world=world, parameters=parameters, sums=sums, changing=changing)
        self.forward = forward
        self._broadcast_buffers = broadcast_buffers
        dtype = torch.float64 if self._wide else torch.float32
        self.tally = nn.Parameter(torch.zeros((), dtype=dtype, device=device))

    def begin(self, batch: Batch) -> None:
        """See `Shares.begin`."""
        super().begin(batch)
        super().expect(batch, last=True)
        if self._broadcast_buffers:
            self.share_buffers()

    def with_units(self, loss: torch.Tensor) -> torch.Tensor:
        """`loss`, and the units as the gradient of the tally, which no scaler of losses touches."""
        if self._scale != 1.0:
            loss = loss * self._scale
        counted: torch.Tensor = self.tally * self._units
        return loss + counted.to(loss.dtype)

    def finish(self) -> None:
        """After the last backward pass of a step: make every gradient that of the whole global batch."""
        self.exchange(self._parameters)

    @torch.no_grad()
    def exchange(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make the gradients of `parameters`, of which the same have one in every process, that of the global batch."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        tally, self.tally.grad = self.tally.grad, None
        mean_over_processes([*gradients, *([] if tally is None else [tally])], self.world)
        if tally is not None and not self._sums:
            self._divide_by(tally * self.world.size, gradients)
