"""What can stand in a configuration: parts with their signatures, and the engine's settings."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from flambeau.config.signature import Parameter, Signature, read_signature
from flambeau.config.slots import SLOTS, Slot
from flambeau.config.source import Missing, Source
from flambeau.registry import DATA_ARGUMENTS, Part, Scan, import_roots, refusal, scan_parts

Parameters = Mapping[str, Parameter]


class Catalog:
    """Parts and settings by name, read from source when asked for; imports nothing of a part."""

    def __init__(self, project_root: Path | None) -> None:
        self.source = Source(import_roots(project_root.resolve()) if project_root is not None else ())
        self.root = project_root
        self._signatures: dict[str, Signature | Missing] = {}
        self._settings: dict[str, Parameters] = {}

    @functools.cached_property
    def scan(self) -> Scan:
        """What was found by reading the project's files and Flambeau's own."""
        return scan_parts(self.root)

    @property
    def parts(self) -> Mapping[tuple[str, str], Part]:
        """All registered parts by (kind, name)."""
        return self.scan.parts

    def target(self, kind: str, name: str) -> str | None:
        """The import path that a name in a configuration stands for; None if no part is called so."""
        if "." in name:
            return name
        part = self.parts.get((kind, name))
        return part.target if part is not None else None

    def signature(self, target: str) -> Signature | Missing:
        """The signature of what lies at an import path, or what of the path is missing."""
        if target not in self._signatures:
            self._signatures[target] = read_signature(target, source=self.source)
        return self._signatures[target]

    def signature_of(self, slot: Slot, name: str | None) -> Signature | None:
        """The signature of the part that `name` (default: the slot's) says, if it may and can be read."""
        name = name or slot.default
        target = self.target(slot.kind, name) if slot.kind and name else None
        if target is None or refusal(target):
            return None
        found = self.signature(target)
        return found if isinstance(found, Signature) else None

    def settings(self, slot: Slot) -> Parameters:
        """The settings that the engine reads itself in a section, with types and meaning."""
        if slot.settings is None:
            return {}
        if slot.settings not in self._settings:
            found = self.signature(slot.settings)
            assert isinstance(found, Signature)
            self._settings[slot.settings] = found.parameters
        return self._settings[slot.settings]

    def arguments(self, slot: Slot, signature: Signature) -> Parameters:
        """The arguments of a part that a configuration may give.

        Not those that the engine passes: for a trainer, all that Flambeau's own Trainer takes; for a
        criterion that is a function of (outputs, targets), these two; for a transform that is a function, what it
        transforms.
        """
        hidden = set(slot.passed)
        if slot.kind == "trainer":
            base = self.signature_of(SLOTS["trainer"], None)
            hidden |= set(base.parameters if base is not None else ())
        hidden |= set(data_arguments(slot.kind, signature))
        return {name: item for name, item in signature.parameters.items() if name not in hidden}

    def takes_any(self, slot: Slot, signature: Signature) -> bool:
        """Whether a part may take arguments beside those that are known of it."""
        return signature.open and slot.kind != "trainer"


def data_arguments(kind: str | None, signature: Signature) -> tuple[str, ...]:
    """The arguments of a function that is called with data: (outputs, targets) of a criterion, a transform's first.

    A function with so many required positional arguments is one; any other makes the part.
    """
    number = DATA_ARGUMENTS.get(kind or "", 0)
    if signature.kind != "function" or not number:
        return ()
    required = [name for name, item in signature.parameters.items() if item.required and item.positional]
    return tuple(required[:number]) if len(required) >= number else ()
