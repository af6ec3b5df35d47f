"""The configuration check: every key, type and choice against what will consume it, without torch."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from flambeau.config.catalog import Catalog, Parameters
from flambeau.config.kinds import fault_of_kind
from flambeau.config.nearest import did_you_mean
from flambeau.config.rules import cross_field_problems
from flambeau.config.signature import Signature
from flambeau.config.slots import SLOTS, TOP_LEVEL, Slot
from flambeau.config.source import Missing
from flambeau.config.start_points import faults_of_start_point, start_points
from flambeau.config.types import Fault, Type, find_faults, takes_function, written
from flambeau.errors import Problem
from flambeau.registry import INSTALLS, fault_of_function, refusal, suggest_part

if TYPE_CHECKING:
    from flambeau.config.load import Config

_GENERAL_TYPES: Mapping[str, Type] = {
    "base": Type("any"),  # read and taken away while composing
    "seed": Type("int", bounds=(("ge", 0), ("lt", 2**63))),
    "vars": Type("mapping"),
    "runs_dir": Type("str"),
}


def check_config(config: Config, catalog: Catalog | None = None) -> list[Problem]:
    """All that is wrong with a composed configuration; empty if nothing is.

    Imports neither torch nor any part. What cannot be judged from source (compiled code, `**kwargs`,
    annotations that cannot be read) passes here and is left to the build.
    """
    return _Check(config, catalog or Catalog(config.project.root)).run()


class _Check:
    def __init__(self, config: Config, catalog: Catalog) -> None:
        self.values = config.values
        self.origins = config.origins
        self.name = config.name
        self.catalog = catalog
        self.problems: list[Problem] = []

    def run(self) -> list[Problem]:
        self.problems += self.catalog.scan.problems
        for key, value in self.values.items():
            if key in _GENERAL_TYPES:
                self._add_faults(find_faults(value, _GENERAL_TYPES[key]), str(key))
            elif key not in SLOTS:
                self._add(str(key), "unknown key", self._suggest(str(key), "", TOP_LEVEL))
        for slot in SLOTS.values():
            self._check_section(slot)
        self.problems += cross_field_problems(self.values, self.origins)
        return self.problems

    # -- sections --

    def _check_section(self, slot: Slot) -> None:
        section = self.values.get(slot.section)
        if section is None:
            if slot.required:
                what = "`epochs` or `steps`" if slot.section == "trainer" else f"the {slot.section}"
                self._add(slot.section, "the section is missing", f"a run needs {what}")
        elif slot.form == "many":
            for label, arguments in self._labelled(slot, section):
                self._check_part(slot, f"{slot.section}.{label}", slot.part_under(label), arguments)
        elif slot.repeats:
            self._check_repeated(slot, section)
        elif not isinstance(section, Mapping):
            shape = f"{{name: {section}}}" if isinstance(section, str) else "a mapping"
            self._add(slot.section, f"expected a mapping, not {written(section)}", f"write {shape}")
        elif slot.kind is None:
            self._check_keys(slot.section, section, self.catalog.settings(slot), slot.section, False)
        else:
            self._check_part(slot, slot.section, slot.default, section)

    def _check_repeated(self, slot: Slot, section: Any) -> None:
        settings = self.catalog.settings(slot)
        if not isinstance(section, Mapping | list):
            self._add(slot.section, f"expected a mapping, not {written(section)}", f"write {{path: {section}}}")
            return
        for key, part in start_points(section):
            if not isinstance(part, Mapping):
                self._add(key, f"expected a mapping, not {written(part)}", "write {path: ...}")
                continue
            self._check_keys(key, part, settings, slot.section, False)
            if "path" not in part and not any(did_you_mean(str(own), ["path"]) for own in part):
                self._add(key, "`path` is missing", "give a run folder, a file of weights, hf://... or timm://...")
            self._add_faults(faults_of_start_point(part), key)

    def _labelled(self, slot: Slot, section: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Labels and arguments of a section of many parts."""
        if isinstance(section, list) and slot.lists_names:
            for place, name in enumerate(section):
                if isinstance(name, str):
                    yield name, {}
                else:
                    self._add(f"{slot.section}.{place}", f"expected a name, not {written(name)}")
        elif isinstance(section, Mapping):
            for label, arguments in section.items():
                if isinstance(arguments, Mapping) or arguments is None:
                    yield str(label), arguments or {}
                else:
                    message = f"expected a mapping of arguments, not {written(arguments)}"
                    self._add(f"{slot.section}.{label}", message, f"write `{label}: {{}}` for no arguments")
        else:
            shape = "a mapping of names to arguments" + (", or a list of names" if slot.lists_names else "")
            self._add(slot.section, f"expected {shape}, not {written(section)}")

    # -- parts --

    def _check_part(self, slot: Slot, key: str, default: str | None, section: Mapping[str, Any]) -> None:
        settings = self.catalog.settings(slot)
        name = section.get("name", default)
        if name is None:
            self._add(key, "`name` is missing", self._suggest_name(slot, ""))
        elif not isinstance(name, str):
            self._add(f"{key}.name", f"expected a name, not {written(name)}")
        else:
            signature = self._find(slot, key, name)
            if signature is not None:
                arguments = self.catalog.arguments(slot, signature)
                takes_any = self.catalog.takes_any(slot, signature)
                owner = slot.section if name == slot.default == "default" else name
                self._check_keys(key, section, {**arguments, **settings}, owner, takes_any)
                if slot.kind == "optimizer" and isinstance(groups := section.get("groups"), list):
                    for place, group in enumerate(groups):
                        if isinstance(group, Mapping) and isinstance(own := group.get("arguments"), Mapping):
                            self._check_keys(f"{key}.groups.{place}.arguments", own, arguments, name, takes_any)
                # An argument that is meant by a mistyped key is not missing too.
                meant = {did_you_mean(str(own), arguments) for own in section if own not in arguments}
                given = {*section, *slot.offered, *settings}
                given |= {own for own in arguments if f"did you mean '{own}'?" in meant}
                for missing in [item for item in arguments.values() if item.required and item.name not in given]:
                    self._add(f"{key}.{missing.name}", f"is missing; {name} needs it", missing.annotation or None)
                return
        # The part is not known: at least what the engine reads is.
        given_settings = {own: value for own, value in section.items() if own in settings}
        self._check_keys(key, given_settings, settings, slot.section, True)

    def _find(self, slot: Slot, key: str, name: str) -> Signature | None:
        """The part's signature; if there is none, the problem is added."""
        assert slot.kind is not None
        place = f"{key}.name" if f"{key}.name" in self.origins else key
        target = self.catalog.target(slot.kind, name)
        if target is None:
            self._add(place, f"no {slot.kind} is called {name!r}", self._suggest_name(slot, name))
            return None
        if reason := refusal(target):
            self._add(place, f"{target} {reason}")
            return None
        found = self.catalog.signature(target)
        if isinstance(found, Missing):
            self._add_missing(place, target, found)
            return None
        if reason := refusal(found.target):
            self._add(place, f"{target} is {found.target}, which {reason}")
            return None
        if fault := fault_of_kind(slot.kind, found, registered="." not in name):
            self._add(place, f"{target} is no {slot.kind}: {fault}")
            return None
        return found

    def _add_missing(self, place: str, target: str, missing: Missing) -> None:
        if missing.package is not None:
            near = did_you_mean(missing.package, missing.near)
            install = f"pip install {INSTALLS[missing.package]}" if missing.package in INSTALLS else None
            message = f"{missing.package} is not installed" + ("" if install else ", and no module of the project")
            self._add(place, message, install or near or "install it, or correct the name")
            return
        parent, _, last = missing.dotted.rpartition(".")
        near = did_you_mean(last, missing.near)
        self._add(place, f"{target} does not exist", near or f"nothing in {parent} is called {last!r}")

    def _suggest_name(self, slot: Slot, name: str) -> str:
        assert slot.kind is not None
        suggestion = suggest_part(slot.kind, name, self.catalog.parts)
        unreadable = self.catalog.scan.unreadable
        return f"{suggestion} (not read: {'; '.join(unreadable)})" if unreadable else suggestion

    # -- keys --

    def _check_keys(self, key: str, section: Mapping[str, Any], known: Parameters, owner: str, takes_any: bool) -> None:
        for own, value in section.items():
            if own in known:
                if not (own == "batch_size" and value is None and section.get("batch_size_per_rank")):
                    faults = find_faults(value, known[own].type)
                    self._add_faults(faults, f"{key}.{own}")
                    if not faults and isinstance(value, str) and takes_function(known[own].type):
                        self._check_function(f"{key}.{own}", value)
            elif own != "name" and not takes_any:
                what = f"unknown setting of `{owner}`" if owner in SLOTS else f"{owner} takes no such argument"
                self._add(f"{key}.{own}", what, self._suggest(str(own), key, known))

    def _check_function(self, key: str, target: str) -> None:
        """A function that is named by its import path is there, and may be called."""
        if "${" in target:
            return  # known when the data is built
        if fault := fault_of_function(target):
            self._add(key, f"{target} {fault}")
        elif isinstance(found := self.catalog.signature(target), Missing):
            self._add_missing(key, target, found)
        elif fault := fault_of_function(found.target):
            self._add(key, f"{target} is {found.target}, which {fault}")

    def _suggest(self, word: str, level: str, names: Any) -> str | None:
        """The nearest name of this level, unless the word is right elsewhere or nothing is near."""
        import difflib

        near = difflib.get_close_matches(word, sorted(names), n=1, cutoff=0.85)
        if not near and (places := [place for place in self.known.get(word, ()) if place != level]):
            return "; ".join(f"there is {place}.{word}" if place else f"{word} stands at the top" for place in places)
        near = near or difflib.get_close_matches(word, sorted(names), n=1, cutoff=0.6)
        if near:
            return f"did you mean {near[0]!r}?"
        if far := difflib.get_close_matches(word, sorted(self.known), n=1, cutoff=0.8):
            place = self.known[far[0]][0]
            return f"did you mean {f'{place}.{far[0]}' if place else far[0]!r}?"
        if not names:
            return "it takes none"
        return f"there are: {', '.join(names)}" if len(names) <= 12 else None

    @functools.cached_property
    def known(self) -> dict[str, list[str]]:
        """Where each setting has its place in this configuration: `clip_norm` -> [`trainer`]."""
        known: dict[str, list[str]] = {key: [""] for key in TOP_LEVEL}

        def add(parameters: Parameters, place: str) -> None:
            for name, parameter in parameters.items():
                known.setdefault(name, []).append(place)
                inner = [item.settings for item in (parameter.type, *parameter.type.items) if item.settings]
                for settings in inner:
                    add(settings, f"{place}.{name}")

        for slot in SLOTS.values():
            if not slot.repeats or slot.section in self.values:
                add(self.catalog.settings(slot), slot.section)
            section = self.values.get(slot.section)
            if slot.form == "one" and slot.kind is not None and isinstance(section, Mapping):
                name = section.get("name")
                signature = self.catalog.signature_of(slot, name if isinstance(name, str) else None)
                if signature is not None:
                    add(self.catalog.arguments(slot, signature), slot.section)
        return known

    # -- problems --

    def _add(self, key: str, message: str, suggestion: str | None = None) -> None:
        self.problems.append(Problem(self._place(key), key, message, suggestion))

    def _add_faults(self, faults: list[Fault], key: str) -> None:
        for fault in faults:
            inner = ".".join([key, *map(str, fault.path)])
            self._add(inner, fault.message, fault.suggestion)

    def _place(self, key: str) -> str:
        """Where the key was written, or the nearest section around it."""
        while key:
            if key in self.origins:
                return str(self.origins[key])
            key = key.rpartition(".")[0]
        return self.name
