"""Evaluation of a model that lies in pieces: all processes call it equally often, whatever each has to measure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count

import numpy as np
import torch

from flambeau.data import Batch
from flambeau.distributed.messages import gather_state
from flambeau.runtime.world import World


def in_step(batches: Iterable[Batch], world: World, device: torch.device) -> Iterator[Batch]:
    """The batches of this process, then as many borrowed ones (of size 0) as the process with the most has more.

    A borrowed batch has the inputs and targets of the last one, or, in a process without any, of rank 0's first: the
    model is to be called with it, and nothing to be counted. Before each batch there is one small message.

    Args:
        device: where a batch goes that comes from rank 0, which has one if any process has.
    """
    source = iter(batches)
    last: Batch | None = None
    for number in count():
        batch = next(source, None)
        have = world.gather(batch is not None)
        if not any(have):
            return
        if number == 0 and not all(have):
            of_main = {"inputs": batch.inputs, "targets": batch.targets} if batch is not None and world.is_main else {}
            sent = gather_state(world, of_main)[0]
            last = Batch(sent["inputs"], sent["targets"], np.empty(0, np.int64), 0).to(device)
        if batch is not None:
            last = batch
            yield batch
        else:
            assert last is not None
            yield Batch(last.inputs, last.targets, last.ids[:0], 0)
