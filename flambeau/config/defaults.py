"""What a configuration leaves unsaid: the defaults of the engine's settings and of the parts' arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flambeau.config.catalog import Catalog
from flambeau.config.signature import Parameter, Signature
from flambeau.config.slots import SLOTS
from flambeau.config.types import Type

TOP: Mapping[str, Any] = {"seed": 0, "runs_dir": "runs"}
"""Defaults of the top-level keys that are no sections."""


class Defaults:
    """The defaults that hold beside the values of one configuration, read from source."""

    def __init__(self, values: Mapping[str, Any], catalog: Catalog) -> None:
        self.values, self.catalog = values, catalog

    def of(self, section: str, label: str | None = None) -> dict[str, Any]:
        """Defaults of a section's settings and arguments; of the top level for an empty text.

        A default that is no literal (`torch.float32`) is a `flambeau.config.signature.Code`.
        """
        slot = SLOTS.get(section)
        if slot is None:
            return {} if section else dict(TOP)
        values = self.values.get(section)
        if label is not None:
            values = values.get(label) if isinstance(values, Mapping) else None
        known: dict[str, Parameter] = {}
        if slot.form == "one" or label is not None:
            if slot.default is not None and (values is None or isinstance(values, Mapping)):
                known["name"] = Parameter("name", "str", slot.default)
            if (signature := self._signature(section, label)) is not None:
                known |= self.catalog.arguments(slot, signature)
            known |= self.catalog.settings(slot)
        return {
            name: self._default(item, values)
            for name, item in known.items()
            if not item.required and name not in slot.offered
        }

    def offered(self) -> frozenset[str] | None:
        """The public attributes of the data part; None if only building it can tell."""
        signature = self._signature("data", None)
        if signature is None:
            return frozenset()
        return signature.offers if signature.kind == "class" and signature.whole else None

    def _default(self, item: Parameter, values: Any) -> Any:
        """The default of a setting; of what is nested in it, if it is partly set."""
        given = values.get(item.name) if isinstance(values, Mapping) else None
        if isinstance(given, Mapping) and (fields := _settings(item.type)) is not None:
            return {name: self._default(inner, given) for name, inner in fields.items() if not inner.required}
        return item.default

    def _signature(self, section: str, label: str | None) -> Signature | None:
        values = self.values.get(section)
        if label is not None:
            values = values.get(label) if isinstance(values, Mapping) else None
        part = SLOTS[section].part_under(label) if label is not None else None
        name = values.get("name", part) if isinstance(values, Mapping) else part
        if name is not None and (not isinstance(name, str) or "${" in name):
            return None
        return self.catalog.signature_of(SLOTS[section], name)


def _settings(kind: Type) -> Mapping[str, Parameter] | None:
    """The settings of a mapping that stands for a record, alone or in a union with null."""
    return next((own.settings for own in (kind, *kind.items) if own.settings is not None), None)
