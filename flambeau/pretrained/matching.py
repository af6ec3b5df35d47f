"""Which tensor of a source goes where in a model, and what does not fit: names and shapes only, no values."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from flambeau.config.sections import PretrainedSettings
from flambeau.config.start_points import fault_of_rule
from flambeau.errors import UsageError
from flambeau.pretrained.names import find_renaming
from flambeau.pretrained.weights import Stored

OPTIONAL = "num_batches_tracked"
"""A counter of batch normalisation that older files lack, and that only `momentum=None` reads."""


@dataclass(frozen=True)
class Mismatch:
    """A tensor that has one shape (or kind of type) in the source and another in the model."""

    name: str
    """Its name in the model."""
    source: Stored
    model: Stored

    def __str__(self) -> str:
        if self.source.shape != self.model.shape:
            return f"{self.name}: {self.source.shape} there, {self.model.shape} in the model"
        return f"{self.name}: {self.source.dtype} there, {self.model.dtype} in the model"


@dataclass(frozen=True)
class Report:
    """What of a source goes into a model, and what is left on either side."""

    origin: str
    matched: Mapping[str, str]
    """Names in the source by names in the model."""
    missing: Sequence[str]
    """Names in the model that were to be filled and are not in the source."""
    unexpected: Sequence[str]
    """Names in the source, as they would be in the model, that the model does not have."""
    mismatched: Sequence[Mismatch]
    wrapper: str = ""
    """What was taken away at the beginning of the source's names, as a wrapper's."""
    excluded: Sequence[str] = ()
    """Names in the source that go nowhere because they were not asked for."""
    model_names: Sequence[str] = field(default=(), repr=False)

    def lines(self) -> list[str]:
        """What a person wants to know, each kind by the modules that it is all of."""
        everything = [*self.model_names, *self.unexpected]
        kinds: dict[str, Collection[str]] = {
            "matched": self.matched.keys(),
            "missing": self.missing,
            "unexpected": self.unexpected,
            "other shape": [item.name for item in self.mismatched],
        }
        first = f"start  {self.origin}: {len(self.matched)} of {len(self.model_names)} tensors of the model"
        lines = [first + (f", names without '{self.wrapper}'" if self.wrapper else "")]
        lines += [
            f"  {kind:<12}{len(names):>5}  {by_module(names, everything)}" for kind, names in kinds.items() if names
        ]
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())


def match(
    stored: Mapping[str, Stored],
    model: Mapping[str, Stored],
    settings: PretrainedSettings,
    *,
    origin: str,
    aliases: Mapping[str, Collection[str]] | None = None,
) -> Report:
    """Find the place of each tensor of a source in a model.

    Args:
        stored: the source's tensors.
        model: the model's.
        aliases: for a name of the model, all names of the same tensor (tied weights).

    Raises:
        UsageError: nothing fits; a pattern or rule is without effect; or, with `strict`, names are unexpected or
            shapes differ. Missing names are judged by `check_missing`, when all parts are known.
    """
    for rule, replacement in settings.map.items():
        if fault := fault_of_rule(rule, replacement or ""):
            raise UsageError(f"pretrained: the rule {rule!r} of `map` {fault}")
    _check_into(settings, model)
    renaming = find_renaming(stored, model, settings.map, settings.into)
    named: dict[str, str] = {}
    for name in stored:
        new = renaming(name)
        if new in named:
            raise UsageError(
                f"{origin}: '{named[new]}' and '{name}' would both become '{new}'", remedy="make `map` tell them apart"
            )
        named[new] = name
    if unused := [rule for rule in settings.map if rule not in renaming.used]:
        near = difflib.get_close_matches(unused[0], _prefixes(stored), n=3, cutoff=0.4) or sorted(stored)[:3]
        raise UsageError(
            f"{origin}: the rule {unused[0]!r} of `map` fits no name", remedy=f"names there: {', '.join(near)}"
        )
    _check_patterns(settings, [*model, *named], origin)

    wanted = [name for name in model if is_wanted(name, settings)]
    matched: dict[str, str] = {}
    mismatched: list[Mismatch] = []
    for name in wanted:
        if name not in named:
            continue
        there = stored[named[name]]
        if there.shape == model[name].shape and _converts(there, model[name]):
            matched[name] = named[name]
        else:
            mismatched.append(Mismatch(name, there, model[name]))
    given = matched.keys() | {item.name for item in mismatched}
    tied = {other for name in matched for other in (aliases or {}).get(name, ())}
    missing = [name for name in wanted if name not in given | tied and name.rpartition(".")[2] != OPTIONAL]
    surplus = [name for name in named if name not in model and is_wanted(name, settings)]
    excluded = [name for name in named if not is_wanted(name, settings)]
    report = Report(origin, matched, missing, surplus, mismatched, renaming.wrapper, excluded, tuple(model))
    if not matched and not (settings.strict and mismatched):
        raise _nothing(report, stored, model, settings)
    if settings.strict:
        _check_strict(report)
    return report


def is_wanted(name: str, settings: PretrainedSettings) -> bool:
    """Whether a name of the model is among those that a start point fills."""
    if settings.into and not name.startswith(f"{settings.into}."):
        return False
    if settings.include and not any(covers(pattern, name) for pattern in settings.include):
        return False
    return not any(covers(pattern, name) for pattern in settings.exclude)


def covers(pattern: str, name: str) -> bool:
    """Whether a pattern matches the name of a tensor, or of a module that it lies in."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:count]), pattern) for count in range(len(parts), 0, -1))


def check_missing(reports: Sequence[Report], settings: Sequence[PretrainedSettings]) -> list[Report]:
    """The reports of all parts together: what one of them leaves out may come from another, but not from two.

    Raises:
        UsageError: two parts fill one tensor; or, with `strict`, a name is in none.
    """
    owner: dict[str, Report] = {}
    for report in reports:
        for name in report.matched:
            if name in owner:
                raise UsageError(
                    f"pretrained: '{name}' comes from {owner[name].origin} and from {report.origin}",
                    remedy="part them by `into`, `include` or `exclude`",
                )
            owner[name] = report
    found = []
    for report, own in zip(reports, settings, strict=True):
        missing = [name for name in report.missing if name not in owner]
        if missing and own.strict:
            raise UsageError(
                f"{report.origin} lacks {_counted(missing)} of the model: {by_module(missing, report.model_names)}"
                + _nearest(missing, [*report.unexpected, *report.excluded]),
                remedy=f"leave them as they are initialised: exclude: [{', '.join(modules_of(missing, report))}], "
                "or strict: false; or rename by `map`",
            )
        found.append(replace(report, missing=missing))
    return found


def by_module(names: Collection[str], everything: Iterable[str], shown: int = 12) -> str:
    """Names, collapsed to the modules that hold nothing else: `backbone (62), head.bias`."""
    chosen = set(names)
    others = {name for name in everything if name not in chosen}
    mixed = set(_prefixes(others))
    groups: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        prefixes = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
        module = next((prefix for prefix in prefixes if prefix not in mixed), name)
        groups[module] = groups.get(module, 0) + 1
    texts = [module if module in chosen else f"{module} ({count})" for module, count in groups.items()]
    rest = f" and {len(texts) - shown} more" if len(texts) > shown else ""
    return ", ".join(texts[:shown]) + rest


def modules_of(names: Sequence[str], report: Report, shown: int = 4) -> list[str]:
    """Patterns that take these names of the model and no others."""
    texts = by_module(names, [*report.matched, *report.model_names], shown=len(names)).split(", ")
    patterns = [text.partition(" (")[0] for text in texts]
    return patterns if len(patterns) <= shown else [*patterns[:shown], "..."]


def _prefixes(names: Iterable[str]) -> list[str]:
    """The names of all modules that tensors lie in."""
    found = dict.fromkeys(
        ".".join(parts[:count]) for parts in (name.split(".") for name in names) for count in range(1, len(parts))
    )
    return list(found)


def _converts(source: Stored, model: Stored) -> bool:
    """Whether values keep their meaning: floating numbers of any width, or the same type."""
    return source.dtype == model.dtype or (source.dtype.is_floating_point and model.dtype.is_floating_point)


def _check_into(settings: PretrainedSettings, model: Mapping[str, Stored]) -> None:
    modules = _prefixes(model)
    if settings.into is not None and settings.into not in modules:
        near = difflib.get_close_matches(settings.into, modules, n=3, cutoff=0.4) or modules[:5]
        raise UsageError(
            f"pretrained: the model has no module '{settings.into}' (`into`)", remedy=f"there are {', '.join(near)}"
        )


def _check_patterns(settings: PretrainedSettings, names: Sequence[str], origin: str) -> None:
    for key, patterns in (("include", settings.include), ("exclude", settings.exclude)):
        for pattern in patterns:
            if not any(covers(pattern, name) for name in names):
                near = difflib.get_close_matches(pattern, [*_prefixes(names), *names], n=3, cutoff=0.4)
                hint = f"the nearest names are {', '.join(near)}" if near else f"names: {', '.join(names[:5])}"
                raise UsageError(f"{origin}: the pattern '{pattern}' of `{key}` fits no name", remedy=hint)


def _check_strict(report: Report) -> None:
    if report.mismatched:
        modules = ", ".join(modules_of([item.name for item in report.mismatched], report))
        listed = "".join(f"\n    {item}" for item in report.mismatched[:12])
        rest = f"\n    and {len(report.mismatched) - 12} more" if len(report.mismatched) > 12 else ""
        raise UsageError(
            f"{report.origin} has {_counted([item.name for item in report.mismatched])} of another shape than the "
            f"model:{listed}{rest}{_explained(report.mismatched)}",
            remedy=f"leave them as they are initialised: exclude: [{modules}], or strict: false",
        )
    if report.unexpected:
        there = [*report.model_names, *report.unexpected]
        raise UsageError(
            f"{report.origin} has {_counted(report.unexpected)} that the model does not have: "
            f"{by_module(report.unexpected, there)}" + _nearest(report.unexpected, report.missing),
            remedy=f"leave them out: exclude: [{', '.join(modules_of(report.unexpected, report))}], or strict: false; "
            "or rename by `map`",
        )


def _explained(mismatched: Sequence[Mismatch]) -> str:
    """What a first convolution of other images, or a head of other classes, looks like."""
    told = []
    for item in mismatched:
        there, here = item.source.shape, item.model.shape
        module = item.name.rpartition(".")[0]
        if len(there) == len(here) > 2 and there[0] == here[0] and there[2:] == here[2:]:
            told.append(f"\n  '{module}' takes {there[1]} channels there and {here[1]} in the model")
        elif len(there) == len(here) >= 2 and there[0] != here[0] and there[1:] == here[1:]:
            told.append(f"\n  '{module}' gives {there[0]} outputs (classes) there and {here[0]} in the model")
    return "".join(told[:3])


def _nothing(
    report: Report, stored: Mapping[str, Stored], model: Mapping[str, Stored], settings: PretrainedSettings
) -> UsageError:
    """Nothing fits: a rule that would help, or the first names of both sides."""
    if not stored:
        return UsageError(f"{report.origin} holds no tensors")
    if report.mismatched:
        return UsageError(
            f"nothing of {report.origin} fits the model: all shapes differ, as in {report.mismatched[0]}",
            remedy="it is another model; compare its settings with those of the one that was trained",
        )
    remedy = f"the model has {', '.join(list(model)[:3])} ...; rename by `map`, or say by `into` where they belong"
    if not settings.map and not settings.into and (rule := _helpful_rule(list(stored), list(model))):
        remedy = f"this would make {rule[1]} of them fit: {rule[0]}"
    there = ", ".join(list(stored)[:3])
    return UsageError(f"nothing of {report.origin} fits the model: its names are {there} ...", remedy=remedy)


def _helpful_rule(stored: Sequence[str], model: Sequence[str]) -> tuple[str, int] | None:
    """The one replacement of a beginning that makes the most names fit."""
    known = set(model)
    best: tuple[str, int] | None = None
    here = ["", *(f"{prefix}." for prefix in _prefixes(model) if prefix.count(".") < 3)]
    there = ["", *(f"{prefix}." for prefix in _prefixes(stored) if prefix.count(".") < 3)]
    for old in there:
        rests = [name.removeprefix(old) for name in stored if name.startswith(old)]
        for new in here:
            count = sum(new + rest in known for rest in rests)
            if count > (best[1] if best else 0):
                rule = f"into: {new[:-1]}" if not old else f'map: {{"{old}": "{new}"}}'
                best = rule, count
    return best


def _nearest(names: Sequence[str], others: Sequence[str]) -> str:
    """For the first of the names, what the other side has that is called nearly so."""
    near = difflib.get_close_matches(names[0], others, n=1, cutoff=0.5)
    return f"; the nearest of '{names[0]}' is '{near[0]}'" if near else ""


def _counted(names: Sequence[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) != 1 else ''}"
