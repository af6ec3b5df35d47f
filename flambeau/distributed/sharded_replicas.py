"""The gradient of the whole global batch, of a model that lies in pieces over the processes.

`fully_shard` gathers weights and adds up gradients by itself; each process is left with its piece of the mean over
processes. What is missing is the weight of each share. Losses are weighed by units as for whole copies (`replicas`);
the units are added up by one message of one number, sent when the last part of the step goes backward and waited for
after that.

**Accumulation.** Gradients are added up over processes after every part, not once a step: one message more a part, and
no memory for whole gradients, which would undo what a model is sharded for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from flambeau.data import Batch
from flambeau.distributed.replicas import Shares, copy_from_main
from flambeau.runtime.world import World


class ShardedReplicas(Shares):
    """One model in pieces, a piece in each process.

    Args:
        model: a sharded one.
        world: the processes.
        device: where this process's piece lies.
        parameters: all that may get a gradient.
        sums: whether losses are sums over units, which are added up over processes, instead of means.
    """

    def __init__(
        self, model: nn.Module, *, world: World, device: torch.device, parameters: Sequence[nn.Parameter], sums: bool
    ) -> None:
        buffers = list(model.buffers())
        super().__init__(model, world=world, parameters=parameters, sums=sums, changing=buffers)
        self.forward = model
        self._device = device
        self._last = True
        self._total: Any = 0
        self._weighed = False
        self._sent: tuple[torch.Tensor, Any] | None = None
        norms = {id(b) for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) for b in m.buffers()}
        # Every forward pass begins with rank 0's values of buffers that the one before has changed, as with copies.
        # Not those of batch norm: training does not read them.
        self._others = [buffer for buffer in buffers if id(buffer) not in norms]
        self._first_step = True
        self._versions: list[int] = []

    def begin(self, batch: Batch) -> None:
        """See `Shares.begin`."""
        super().begin(batch)
        self._last, self._total, self._weighed, self._sent = True, 0, False, None
        if self._first_step:
            self._versions = [buffer._version for buffer in self._others]
        elif self._others:
            copy_from_main(self._others)

    def expect(self, part: Batch, *, last: bool) -> None:
        """See `Shares.expect`."""
        super().expect(part, last=last)
        self._last = last

    def weigh(self, loss: torch.Tensor, units: Any) -> torch.Tensor:
        """See `Shares.weigh`."""
        if not self._sums:
            self._total = self._total + units
            self._weighed = True
        return super().weigh(loss, units)

    def with_units(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss; with the last part of a step, its units are sent off."""
        if self._weighed and self._last:
            dtype = torch.float64 if self._wide else torch.float32
            total = torch.as_tensor(self._total, dtype=dtype, device=self._device).detach().reshape(1).clone()
            self._sent = total, dist.all_reduce(total, async_op=True)
        return loss * self._scale if self._scale != 1.0 else loss

    @torch.no_grad()
    def finish(self) -> None:
        """See `Shares.finish`."""
        if self._sent is not None:
            total, work = self._sent
            work.wait()
            self._divide_by(total, [p.grad for p in self._parameters if p.grad is not None])
        if self._first_step and self._others:
            self._find_changing()
        self._first_step = False

    def _find_changing(self) -> None:
        """After the first step: which buffers it has changed, in any process."""
        mine = [index for index, buffer in enumerate(self._others) if buffer._version != self._versions[index]]
        changing = sorted({index for indices in self.world.gather(mine) for index in indices})
        self._others = [self._others[index] for index in changing]
