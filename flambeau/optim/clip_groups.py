"""Which gradients are clipped together, and how: one norm for all, or groups each by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flambeau.config.sections import TrainerSettings
from flambeau.errors import UsageError
from flambeau.optim.clip import clip_gradient_norm, clip_gradient_value
from flambeau.optim.select import Parameters, claims, describe, distinct, label


@dataclass(frozen=True)
class _Rule:
    """Parameters that are clipped together; no name: all, or the rest."""

    members: Sequence[nn.Parameter]
    norm: float = math.inf
    value: float = math.inf
    name: str | None = None


class Clipping:
    """Clips gradients as the settings of the trainer say; without a model, none.

    Raises:
        UsageError: two ways of clipping are given, or the groups of `trainer.clip` do not fit the model.
    """

    def __init__(self, model: nn.Module | None = None, settings: TrainerSettings | None = None) -> None:
        settings = settings or TrainerSettings()
        self.logs = settings.log_grad_norm
        self.clips = bool(settings.clip_norm or settings.clip_value or settings.clip)
        """Whether anything is clipped."""
        self._rules: list[_Rule] = []
        given = [key for key in ("clip_norm", "clip_value", "clip") if getattr(settings, key)]
        if len(given) > 1:
            raise UsageError(f"trainer: both {given[0]} and {given[1]} are given", remedy="give one of them")
        if model is None:
            return
        if not settings.clip:
            whole = _Rule([], settings.clip_norm or math.inf, settings.clip_value or math.inf)
            self._rules = [whole]
            return
        for group in settings.clip:
            if (group.norm is None) == (group.value is None):
                both = "neither norm nor value" if group.norm is None else "both norm and value"
                raise UsageError(f"trainer.clip: {describe(group)} has {both}", remedy="give one of them")
        members = claims("trainer.clip", Parameters(model), settings.clip)
        names = [group.name or label(group) for group in settings.clip]
        distinct("trainer.clip", names)
        self._rules = [
            _Rule(own, group.norm or math.inf, group.value or math.inf, name)
            for own, group, name in zip(members, settings.clip, names, strict=True)
        ]

    def of(self, parameters: Sequence[nn.Parameter]) -> Clipping:
        """The part of it that is about the parameters of one optimizer."""
        own = Clipping()
        own.logs, own.clips = self.logs, self.clips
        taken = {parameter for rule in self._rules for parameter in rule.members}
        for rule in self._rules or [_Rule([])]:
            members = set(rule.members) if rule.name is not None else set(parameters)
            own._rules.append(replace(rule, members=[parameter for parameter in parameters if parameter in members]))
        own._rules = [rule for rule in own._rules if rule.members]
        rest = [parameter for parameter in parameters if parameter not in taken]
        if taken and rest:
            own._rules.append(_Rule(rest))
        return own

    def clip(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Clip, and give the norm of all gradients before it, and that of each named group."""
        if len(self._rules) == 1 and self._rules[0].name is None:
            return _clip(self._rules[0]), {}
        norms = [_clip(rule) for rule in self._rules]
        alike = [norm.to(norms[0].device, torch.promote_types(norms[0].dtype, norm.dtype)) for norm in norms]
        named = {rule.name: norm for rule, norm in zip(self._rules, norms, strict=True) if rule.name is not None}
        return torch.linalg.vector_norm(torch.stack(alike)), named


def _clip(rule: _Rule) -> Tensor:
    norm = clip_gradient_norm(rule.members, rule.norm)
    if rule.value < math.inf:
        clip_gradient_value(rule.members, rule.value, norm)
    return norm
