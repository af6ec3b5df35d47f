"""The transforms that a configuration names, one after the other, each on its part of a sample or batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from flambeau.data.batch import Batch, input_and_target
from flambeau.errors import UsageError
from flambeau.runtime.seeds import derive, isolated


class SampleTransforms:
    """Transforms of a sample: each gets what its `on` says, by default the input.

    Args:
        steps: by label, a transform and its `on`: `inputs`, `targets`, an entry of them (`inputs.image`), `sample`
            (both, in the form that the dataset gives), or None: what the transform's attribute `on` says, else
            `inputs`.
        before: what is applied first, to the whole sample.
    """

    def __init__(
        self, steps: Mapping[str, tuple[Callable[..., Any], str | None]], before: Callable[[Any], Any] | None = None
    ) -> None:
        self._before = before
        self._steps = [(label, transform, _target(label, transform, on)) for label, (transform, on) in steps.items()]
        for label, transform, _ in self._steps:
            if not callable(transform):
                raise UsageError(f"{label} changes whole batches", remedy="put it under train_batch_transforms")

    def __call__(self, sample: Any) -> Any:
        if self._before is not None:
            sample = self._before(sample)
        for label, transform, on in self._steps:
            if on == ["sample"]:
                sample = transform(sample)
                continue
            halves = dict(zip(("inputs", "targets"), input_and_target(sample), strict=True))
            halves = _changed(halves, on, transform, label)
            sample = halves if isinstance(sample, Mapping) else (halves["inputs"], halves["targets"])
        return sample


class BatchTransforms:
    """Transforms of a batch on its device: each gets what its `on` says, by default the inputs.

    A transform with a method `on_batch(batch)` is called with the batch, whose inputs are what `on` says, and draws
    each sample's own random numbers from it. Any other runs with all generators seeded by (seed, epoch, the first
    sample of this process's part): the same after a resume, not the same at another number of processes.

    Args:
        steps, before: as of `SampleTransforms`; `sample` is `(inputs, targets)`.
    """

    def __init__(
        self, steps: Mapping[str, tuple[Callable[..., Any], str | None]], before: Callable[[Batch], Batch] | None = None
    ) -> None:
        self._before = before
        self._steps = [(label, transform, _target(label, transform, on)) for label, (transform, on) in steps.items()]

    def __call__(self, batch: Batch) -> Batch:
        if self._before is not None:
            batch = self._before(batch)
        for label, transform, on in self._steps:
            keyed = batch.keyed("transform", label)
            run = self._own if hasattr(transform, "on_batch") else self._foreign
            changed = run(keyed, transform, on, label)
            batch = batch.replace(inputs=changed.inputs, targets=changed.targets)
        return batch

    @staticmethod
    def _own(batch: Batch, transform: Any, on: list[str], label: str) -> Batch:
        if on[0] != "inputs":
            raise UsageError(f"{label}: it changes inputs, and `on` is {'.'.join(on)}")
        targets: list[Any] = []

        def change(entry: Any) -> Any:
            changed = transform.on_batch(batch.replace(inputs=entry, targets=batch.targets))
            targets.append(changed.targets)
            return changed.inputs

        halves = _changed({"inputs": batch.inputs, "targets": batch.targets}, on, change, label)
        return batch.replace(inputs=halves["inputs"], targets=targets[0])

    @staticmethod
    def _foreign(batch: Batch, transform: Any, on: list[str], label: str) -> Batch:
        first = int(batch.ids[0]) if batch.size else -1
        if isinstance(transform, nn.Module):
            transform.to(batch.device)
        with torch.no_grad(), isolated(derive(batch.key, first)):
            if on == ["sample"]:
                inputs, targets = input_and_target(transform((batch.inputs, batch.targets)))
            else:
                halves = _changed({"inputs": batch.inputs, "targets": batch.targets}, on, transform, label)
                inputs, targets = halves["inputs"], halves["targets"]
        return batch.replace(inputs=inputs, targets=targets)


def _target(label: str, transform: Any, on: str | None) -> list[str]:
    words = (on or getattr(transform, "on", None) or "inputs").split(".")
    if words[0] not in ("inputs", "targets", "sample") or not all(words) or (words[0] == "sample" and len(words) > 1):
        raise UsageError(
            f"{label}.on: '{'.'.join(words)}' is no part of a sample",
            remedy="write inputs, targets, an entry of them (inputs.image), or sample",
        )
    return words


def _changed(data: Any, path: list[str], function: Callable[[Any], Any], label: str, done: str = "") -> Any:
    """`data` with one entry changed; the dicts on the way to it are copied."""
    if not path:
        if isinstance(data, Mapping):
            raise UsageError(
                f"{label}: the {done} are a dict of {', '.join(map(str, data))}",
                remedy=f"say which of them it changes, `on: {done}.{next(iter(data), 'NAME')}`, or `on: sample`",
            )
        return function(data)
    if not isinstance(data, Mapping) or path[0] not in data:
        has = f"it has {', '.join(map(str, data))}" if isinstance(data, Mapping) else "that is no dict"
        raise UsageError(f"{label}.on: there is no entry '{path[0]}' in {done or 'the sample'}", remedy=has)
    inner = f"{done}.{path[0]}" if done else path[0]
    return {**data, path[0]: _changed(data[path[0]], path[1:], function, label, inner)}
