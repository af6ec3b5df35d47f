"""Weights from elsewhere, put into a model: by one call, or at the beginning of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from flambeau.config.sections import PretrainedSettings
from flambeau.errors import UsageError
from flambeau.pretrained.matching import Report, check_missing, match
from flambeau.pretrained.sources import open_weights
from flambeau.pretrained.weights import Stored, Weights
from flambeau.runtime.shards import is_sharded


def load_pretrained(
    model: nn.Module,
    path: str | Path,
    *,
    checkpoint: Literal["best", "last"] | Annotated[int, Ge(0)] | None = None,
    weights: Literal["auto", "model", "ema"] = "auto",
    key: str | None = None,
    map: Mapping[str, str | None] | None = None,
    into: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    strict: bool = True,
) -> Report:
    """Fill a model, in place, with weights from elsewhere; returns what fitted and what did not.

    Args:
        model: on any device; values take its types.
        path: a run folder, a checkpoint, a file or folder of weights, `hf://org/name` or `timm://name`.
        checkpoint, weights, key, map, into, include, exclude, strict: as in the section `pretrained:`, see
            `flambeau.config.sections.PretrainedSettings`.

    Raises:
        UsageError: there is nothing to read, or it does not fit; the model is as it was.

    Example:
        >>> print(flambeau.load_pretrained(model, "runs/a", exclude=["head"]))
    """
    settings = PretrainedSettings(
        path=str(path), checkpoint=checkpoint, weights=weights, key=key, map=dict(map or {}), into=into,
        include=list(include), exclude=list(exclude), strict=strict,
    )  # fmt: skip
    tensors = tensors_of(model)
    if any(is_sharded(tensor) for tensor in tensors.values()):
        raise UsageError(
            "the model lies in pieces over several processes, and one call cannot fill it",
            remedy="fill it before it is sharded, or give the start point to the trainer: start_points=",
        )
    start = Start.plan(model, [settings])
    for target, value in start.values(tensors):
        with torch.no_grad():
            target.copy_(value)
    return start.reports[0]


@dataclass(frozen=True)
class Start:
    """Weights found for a model, of which all is known but their values."""

    reports: list[Report]
    sources: list[Weights]

    @classmethod
    def plan(cls, model: nn.Module, parts: Sequence[PretrainedSettings], root: Path | None = None) -> Start:
        """Open all sources and find the place of each of their tensors; no value is read.

        Args:
            root: see `open_weights`.

        Raises:
            UsageError: a source cannot be read, or does not fit the model.
        """
        tensors = tensors_of(model)
        known = {name: Stored(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        same: dict[int, list[str]] = {}
        for name, tensor in tensors.items():
            same.setdefault(id(tensor), []).append(name)
        aliases = {name: names for names in same.values() if len(names) > 1 for name in names}
        sources = [open_weights(part, root) for part in parts]
        reports = [
            match(source.tensors, known, part, origin=source.origin, aliases=aliases)
            for source, part in zip(sources, parts, strict=True)
        ]
        start = cls(check_missing(reports, parts), sources)
        start._check_tied(aliases)
        return start

    @property
    def names(self) -> list[str]:
        """Names of the model's tensors that are filled, in the order of `read`."""
        return [name for report in self.reports for name in report.matched]

    def read(self) -> Iterator[Tensor]:
        """Their values, one at a time, on the CPU."""
        for report, source in zip(self.reports, self.sources, strict=True):
            for theirs in report.matched.values():
                yield source.read(theirs)

    def values(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Each tensor of the model that is filled, and its value."""
        yield from zip((tensors[name] for name in self.names), self.read(), strict=True)

    def records(self) -> list[dict[str, Any]]:
        """What a run's record says of its start: where each part came from, with hashes, and what was left out."""
        return [
            {
                **source.record(),
                "matched": len(report.matched),
                "missing": list(report.missing),
                "unexpected": list(report.unexpected),
                "mismatched": [str(item) for item in report.mismatched],
            }
            for report, source in zip(self.reports, self.sources, strict=True)
        ]

    def _check_tied(self, aliases: Mapping[str, Sequence[str]]) -> None:
        """Refuse two values for one tensor of the model."""
        first: dict[str, tuple[str, Weights, str]] = {}
        for report, source in zip(self.reports, self.sources, strict=True):
            for name, theirs in report.matched.items():
                if name not in aliases:
                    continue
                known, other, before = first.setdefault(aliases[name][0], (name, source, theirs))
                if known != name and not torch.equal(other.read(before), source.read(theirs)):
                    raise UsageError(
                        f"'{known}' and '{name}' are one tensor in the model, and {report.origin} has two for them",
                        remedy=f"choose one: exclude: [{name}]",
                    )


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and kept buffers of a model by the names that a checkpoint gives them; not copies.

    Raises:
        UsageError: one has no size yet.
    """
    tensors = {name: item for name, item in model.state_dict(keep_vars=True).items() if isinstance(item, Tensor)}
    if lazy := [name for name, tensor in tensors.items() if is_lazy(tensor)]:
        raise UsageError(
            f"'{lazy[0]}' has no size before the first batch, and cannot be filled",
            remedy="give the module its sizes (nn.Linear for nn.LazyLinear), or call the model once before",
        )
    return tensors
