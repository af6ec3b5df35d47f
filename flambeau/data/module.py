"""What a data module is: the datasets of one task, and what is done to their samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flambeau.data.batch import Batch, Collate


class DataModule:
    """The train, validation and test datasets of one task, and their transforms.

    Inheriting is optional: any class with these attributes is a data module. A subclass annotates what it
    offers to the configuration in its body (`num_classes: int`), which `${data.num_classes}` then refers to.

    Attributes:
        train, val, test: map-style or iterable datasets of samples, or None.
        train_transform, eval_transform: called with each sample; random ones are reproducible, since torch,
            numpy and `random` are seeded for each sample by (seed, epoch, index).
        batch_transform: called with each batch on the training device, in training and evaluation alike; it
            must be deterministic (normalise bytes, move channels).
        train_batch_transform: likewise, after it, in training alone; its random numbers are to come from
            `Batch.random`, so that they are a function of (seed, epoch, sample).
        collate: makes a batch of a list of samples, in the form of a sample, where they cannot simply be stacked:
            `flambeau.data.Padding` for samples of different lengths.
    """

    train: Any = None
    val: Any = None
    test: Any = None
    train_transform: Callable[[Any], Any] | None = None
    eval_transform: Callable[[Any], Any] | None = None
    batch_transform: Callable[[Batch], Batch] | None = None
    train_batch_transform: Callable[[Batch], Batch] | None = None
    collate: Collate | None = None
