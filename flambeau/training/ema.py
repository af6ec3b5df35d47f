"""Exponential moving average of the weights."""

from __future__ import annotations

import torch
from torch import nn

from flambeau.config.sections import EmaSettings
from flambeau.distributed.sharding import twin_of
from flambeau.runtime.shards import local_parts


class Ema:
    """A second model whose weights follow the first: `average <- decay * average + (1 - decay) * weight`.

    (Polyak & Juditsky, 1992.) Floating-point parameters are averaged; buffers (statistics of normalisation, counters)
    are taken over as they are. `model` is a module of its own, so evaluating it touches no weight in training.
    """

    def __init__(self, model: nn.Module, settings: EmaSettings) -> None:
        self.settings = settings
        self.model = twin_of(model).eval().requires_grad_(False)
        pairs = list(zip(self.model.parameters(), model.parameters(), strict=True))
        self._averages = [average for average, _ in pairs if average.is_floating_point()]
        self._sources = [source for average, source in pairs if average.is_floating_point()]
        self._buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def follow(self) -> None:
        """Become equal to the model, whose weights were changed from outside training."""
        torch._foreach_copy_(local_parts(self._averages), local_parts(self._sources))
        for average, source in self._buffers:
            average.copy_(source)

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Follow the model, after the optimizer has applied its update number `updates` (from 1)."""
        settings = self.settings
        if updates % settings.update_every:
            return
        averages, weights = local_parts(self._averages), local_parts(self._sources)
        if updates <= settings.update_after_step:
            torch._foreach_copy_(averages, weights)
        else:
            torch._foreach_lerp_(averages, weights, 1.0 - settings.decay)
        for average, source in self._buffers:
            average.copy_(source)
