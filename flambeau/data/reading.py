"""Reading and transforming samples, so that the result is the same in whichever process it happens.

Sample i of epoch e is read and transformed with torch, numpy and `random` seeded from (seed, e, i): neither
the process, nor the other samples of the batch, nor what ran before have any part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from flambeau.data.batch import Collate, collate_with, input_and_target, row_of
from flambeau.data.in_memory import as_fetching
from flambeau.data.index_stream import Indices
from flambeau.runtime.seeds import derive, host_generators_kept, seed_host

Transform = Callable[[Any], Any]


class SampleReader:
    """Makes batches of a map-style dataset.

    Args:
        dataset: has `__getitem__`; `fetch` or `__getitems__` are used if they are there. A dataset that draws
            random numbers while it fetches a whole batch does so as a function of the batch, not of the
            sample.
        transform: called with each sample, or None.
        seed: the seed of the run.
        training: whether the epoch counts in the seed of a sample; an evaluation is the same each time.
        collate: makes a batch of samples, in the form of a sample; None stacks them.
    """

    def __init__(
        self, dataset: Any, transform: Transform | None, seed: int, *, training: bool, collate: Collate | None = None
    ) -> None:
        self.transform = transform
        self.collate = collate
        self.seed = seed
        self.training = training
        self._dataset, self._positions = unwrap(dataset)
        self._source = as_fetching(self._dataset)

    def read(self, epoch: int, ids: Indices) -> tuple[Any, Any]:
        """`(inputs, targets)` of the samples `ids`; the global generators are left as they were."""
        positions = ids if self._positions is None else self._positions[ids]
        indices = ids.tolist()
        with host_generators_kept():
            if self._source is not None:
                seed_host(self._seed_of("fetch", epoch, indices[0]))
                batch = input_and_target(self._source.fetch(torch.from_numpy(positions)))
                if self.transform is None and self.collate is None:
                    return batch
                samples = [(row_of(batch[0], row), row_of(batch[1], row)) for row in range(len(indices))]
            elif hasattr(self._dataset, "__getitems__"):
                seed_host(self._seed_of("fetch", epoch, indices[0]))
                samples = list(self._dataset.__getitems__(positions.tolist()))
            else:
                return self._batch(self._apply(self._read_sample, epoch, indices, positions.tolist()))
            if self.transform is not None:
                samples = self._apply(self.transform, epoch, indices, samples)
            return self._batch(samples)

    def _batch(self, samples: Sequence[Any]) -> tuple[Any, Any]:
        return collate_with(self.collate, samples)

    def _read_sample(self, position: int) -> Any:
        sample = self._dataset[position]
        return sample if self.transform is None else self.transform(sample)

    def _apply(self, function: Transform, epoch: int, indices: list[int], arguments: list[Any]) -> list[Any]:
        """Call `function` for each sample under the sample's own seed; an error says which sample it was."""
        results = []
        for index, argument in zip(indices, arguments, strict=True):
            seed_host(self._seed_of("augment", epoch, index))
            try:
                results.append(function(argument))
            except Exception as error:
                place = f"epoch {epoch}" if self.training else "an evaluation"
                error.add_note(f"while reading sample {index} in {place}")
                raise
        return results

    def _seed_of(self, purpose: str, epoch: int, index: int) -> int:
        return derive(self.seed, purpose, epoch, index) if self.training else derive(self.seed, "eval", index)


def unwrap(dataset: Any) -> tuple[Any, Indices | None]:
    """The dataset below plain Subsets, which would read a batch under one seed, and the positions in it."""
    positions: Indices | None = None
    while isinstance(dataset, Subset) and type(dataset).__getitem__ is Subset.__getitem__:
        inner = np.asarray(dataset.indices, dtype=np.int64)
        positions = inner if positions is None else inner[positions]
        dataset = dataset.dataset
    return dataset, positions
