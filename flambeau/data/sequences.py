"""Made-up sequences of different lengths, whose class is the order of a few of their tokens."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Annotated, Any

import torch
from annotated_types import Ge, Interval
from torch.utils.data import Dataset

from flambeau.data.module import DataModule
from flambeau.data.padding import Padding
from flambeau.data.splits import split
from flambeau.errors import UsageError
from flambeau.registry import register
from flambeau.runtime.seeds import derive


class TokenSequences(Dataset[dict[str, Any]]):
    """Sequences of tokens and their classes.

    A sample is `{"inputs": {"tokens": (T,) int64, "lengths": T}, "targets": class}`.
    """

    def __init__(self, sequences: list[torch.Tensor], classes: torch.Tensor) -> None:
        self.sequences = sequences
        self.classes = classes

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = self.sequences[index]
        return {"inputs": {"tokens": tokens, "lengths": len(tokens)}, "targets": int(self.classes[index])}


@register.data("sequences")
class Sequences(DataModule):
    """Noise of random length, in which each of a few markers is once; the class is the order of the markers.

    Which tokens a sequence has, how many, and how long it is says nothing of its class: a model that does not look at
    the order is right as often as one that guesses. Batches are padded with token 0 to the longest in them.

    Args:
        size: sequences in all; each class has as many, up to one.
        min_length: least tokens of a sequence.
        max_length: most tokens of a sequence.
        num_markers: markers, k; there are k! classes.
        num_noise_tokens: tokens that mean nothing.
        val_fraction: share of the sequences that is held out for validation; stratified, a function of the seed.
        test_fraction: likewise for the test.
        seed: what the sequences and the split are functions of.

    Token 0 is padding, 1 to `num_markers` are the markers, the rest is noise.
    """

    num_classes: int
    vocab_size: int
    max_length: int

    def __init__(
        self,
        size: Annotated[int, Ge(1)] = 4000,
        min_length: Annotated[int, Ge(1)] = 5,
        max_length: Annotated[int, Ge(1)] = 40,
        num_markers: Annotated[int, Interval(ge=2, le=5)] = 3,
        num_noise_tokens: Annotated[int, Ge(1)] = 12,
        val_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.15,
        test_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.15,
        seed: int = 0,
    ) -> None:
        if not num_markers <= min_length <= max_length:
            raise UsageError(
                f"data: {num_markers} markers do not fit into {min_length} to {max_length} tokens",
                remedy="let num_markers <= min_length <= max_length",
            )
        self.num_classes = math.factorial(num_markers)
        self.vocab_size = 1 + num_markers + num_noise_tokens
        self.max_length = max_length
        generator = torch.Generator().manual_seed(derive(seed, "sequences"))
        orders = torch.tensor(list(permutations(range(1, num_markers + 1))))
        classes = torch.arange(size) % self.num_classes
        lengths = torch.randint(min_length, max_length + 1, (size,), generator=generator).tolist()
        sequences = []
        for length, label in zip(lengths, classes.tolist(), strict=True):
            tokens = torch.randint(1 + num_markers, self.vocab_size, (length,), generator=generator)
            places = torch.randperm(length, generator=generator)[:num_markers].sort().values
            tokens[places] = orders[label]
            sequences.append(tokens)
        parts = split(size, (val_fraction, test_fraction), seed, labels=classes.numpy())
        self.train, self.val, self.test = (
            TokenSequences([sequences[index] for index in part], classes[part]) if len(part) else None for part in parts
        )
        self.collate = Padding({"inputs.tokens": 0})
