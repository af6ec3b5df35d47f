"""What a new run starts with: weights from elsewhere, read by rank 0 and given to all processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch import distributed as dist

from flambeau.config.sections import PretrainedSettings
from flambeau.distributed.deferred import copy_piece
from flambeau.launch.lead import lead

if TYPE_CHECKING:
    from flambeau.pretrained.load import Start
    from flambeau.training.trainer import Trainer


class StartPoints:
    """The start points of one run.

    They are loaded once, before the first step. A run that is resumed has its weights from its checkpoint, and needs
    none of what it started from; only one that was stopped before its first checkpoint begins with them again.

    Args:
        parts: `pretrained:` of the configuration.
        root: the folder that relative paths may start from, beside the working directory.
    """

    def __init__(self, parts: Sequence[PretrainedSettings] = (), root: Path | None = None) -> None:
        self.parts = list(parts)
        self.root = root
        self._planned: Start | None = None

    def plan(self, trainer: Trainer) -> None:
        """Find the weights and see that they fit, on rank 0, before a run folder is made.

        Raises:
            UsageError: they are not there, or do not fit.
        """
        if self.parts:
            from flambeau.pretrained.load import Start  # brings huggingface_hub and the like only where it is used

            self._planned = Start.plan(trainer.model, self.parts, self.root)

    def load(self, trainer: Trainer) -> None:
        """Give the model its weights, and say what fitted; all processes call it."""
        if not self.parts or trainer.state.step:
            return
        from flambeau.pretrained.load import tensors_of

        def planned() -> list[str]:
            if self._planned is None:
                self.plan(trainer)
            assert self._planned is not None
            return self._planned.names

        with trainer.paused():  # the hub may be slow
            names = lead(trainer.world, planned)
        tensors = tensors_of(trainer.model)
        targets = [tensors[name] for name in names]
        for target, value in zip(targets, self._values(targets, trainer), strict=True):
            copy_piece(value, target)
        if trainer.ema is not None:
            trainer.ema.follow()
        if (start := self._planned) is not None:
            for report in start.reports:
                for line in report.lines():
                    trainer.recorder.say(line)
            if trainer.run_folder is not None:
                trainer.run_folder.write_pretrained(start.records())
        self._planned = None

    def _values(self, targets: Sequence[Tensor], trainer: Trainer) -> Iterator[Tensor]:
        """The values of `targets`, whole, one at a time: rank 0 reads them, the others get them from it."""
        if trainer.world.size == 1:
            assert self._planned is not None
            yield from self._planned.read()
            return
        read = self._planned.read() if self._planned is not None else None
        for target in targets:
            value = torch.empty(target.shape, dtype=target.dtype, device=trainer.device)
            if read is not None:
                value.copy_(next(read))
            dist.broadcast(value, 0)
            yield value
