"""The JSON schema of configurations, by which editors complete and check YAML: draft-07, which they all read.

A file may leave to its bases what it does not say, so nothing is required; a value may be a reference.
The rest is what :mod:`flambeau.config.check` asks for, from the same signatures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any

from flambeau.config.catalog import Catalog, Parameters
from flambeau.config.project import Project
from flambeau.config.signature import Code, Parameter
from flambeau.config.slots import GENERAL, SLOTS, Slot
from flambeau.config.types import Type
from flambeau.registry import KINDS

_IMPORT_PATH = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$"
_REFERENCE = {"type": "string", "pattern": r"\$\{[^}]+\}"}


def json_schema(project: Project) -> dict[str, Any]:
    """The schema of a project's configurations: the engine's settings and every part with its arguments."""
    catalog = Catalog(project.root)
    general: Mapping[str, dict[str, Any]] = {
        "base": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "seed": _or_reference({"type": "integer", "minimum": 0, "default": 0}),
        "vars": {"type": "object"},
        "runs_dir": {"type": "string", "default": "runs"},
    }
    properties = {key: {"description": GENERAL[key], **schema} for key, schema in general.items()}
    properties |= {key: _section_schema(slot, catalog) for key, slot in SLOTS.items()}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Flambeau configuration",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _section_schema(slot: Slot, catalog: Catalog) -> dict[str, Any]:
    settings = catalog.settings(slot)
    if slot.repeats:
        part = _closed(settings)
        labelled = {"type": "object", "additionalProperties": {"anyOf": [part, {"type": "null"}]}}
        return {"anyOf": [part, {"type": "array", "items": part}, labelled, {"type": "null"}]}
    if slot.kind is None:
        return {"anyOf": [_closed(settings), {"type": "null"}]}
    choices = {name: _part_schema(slot, name, settings, catalog) for name in _names(slot.kind, catalog)}
    if slot.form == "one":
        meaning = KINDS[slot.kind]
        return {
            "description": meaning,
            "type": ["object", "null"],
            **_by_name(choices, settings, slot.default),
        }
    if slot.default is not None:  # labels of one's own
        part = {"type": ["object", "null"], **_by_name(choices, settings, slot.default)}
        return {"description": KINDS[slot.kind], "type": ["object", "null"], "additionalProperties": part}
    # The label is the part's name, unless `name` is given.
    other = {"type": ["object", "null"], **_by_name(choices, {}, None)}
    named = {
        label: {"if": _has_name(), "then": other, "else": {"anyOf": [schema, {"type": "null"}]}}
        for label, schema in choices.items()
    }
    mapping = {"type": "object", "properties": named, "additionalProperties": other}
    forms: list[dict[str, Any]] = [mapping, {"type": "null"}]
    if slot.lists_names:
        forms.append({"type": "array", "items": _name_schema(choices)})
    return {"description": KINDS[slot.kind], "anyOf": forms}


def _names(kind: str, catalog: Catalog) -> list[str]:
    return sorted(name for of, name in catalog.parts if of == kind)


def _part_schema(slot: Slot, name: str, settings: Parameters, catalog: Catalog) -> dict[str, Any]:
    """The section when it names this part."""
    signature = catalog.signature_of(slot, name)
    if signature is None:
        return {"type": "object"}
    schema = _closed({**catalog.arguments(slot, signature), **settings})
    schema["properties"]["name"] = _name_schema({name: schema})
    if catalog.takes_any(slot, signature):
        schema["additionalProperties"] = True
    if signature.summary:
        schema["description"] = signature.summary
    return schema


def _by_name(choices: Mapping[str, Any], settings: Parameters, default: str | None) -> dict[str, Any]:
    """A section whose keys depend on its `name`; without one it may continue what a base names."""
    return {
        "properties": {"name": {**_name_schema(choices), **({"default": default} if default else {})}}
        | {name: _parameter_schema(setting) for name, setting in settings.items()},
        "allOf": [
            {"if": {**_has_name(), "properties": {"name": {"const": name}}}, "then": schema}
            for name, schema in choices.items()
        ],
    }


def _has_name() -> dict[str, Any]:
    return {"type": "object", "required": ["name"]}


def _name_schema(choices: Mapping[str, Any]) -> dict[str, Any]:
    forms: list[dict[str, Any]] = [{"type": "string", "pattern": _IMPORT_PATH}, _REFERENCE]
    return {"anyOf": [{"enum": list(choices)}, *forms] if choices else forms}


def _closed(parameters: Parameters) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: _parameter_schema(item) for name, item in parameters.items()},
        "additionalProperties": False,
    }


def _parameter_schema(parameter: Parameter) -> dict[str, Any]:
    """An argument or setting, with its meaning and default for the editor."""
    schema = _or_reference(type_schema(parameter.type))
    if parameter.doc:
        schema["description"] = parameter.doc
    default = parameter.default
    if default is not MISSING and _is_json(default):
        schema["default"] = list(default) if isinstance(default, tuple) else default
    return schema


def _is_json(default: Any) -> bool:
    if isinstance(default, (list, tuple)):
        return all(_is_json(item) for item in default)
    if isinstance(default, float):
        return default - default == 0  # finite
    return default is None or (isinstance(default, (bool, int, str)) and not isinstance(default, Code))


def _or_reference(schema: dict[str, Any]) -> dict[str, Any]:
    if not schema:
        return {}
    return {"anyOf": [*schema["anyOf"], _REFERENCE] if list(schema) == ["anyOf"] else [schema, _REFERENCE]}


def type_schema(type: Type) -> dict[str, Any]:
    """The JSON schema of the values that a type allows; any value for a type that is not known."""
    match type.form:
        case "any" | "object":
            return {}
        case "union":
            return {"anyOf": [type_schema(item) for item in type.items]}
        case "literal":
            return {"enum": list(type.values)}
        case "list":
            item = _or_reference(type_schema(type.items[0])) if type.items else {}
            return {"type": "array", "items": item}
        case "tuple":
            items = [_or_reference(type_schema(item)) for item in type.items]
            return {"type": "array", "items": items, "minItems": len(items), "maxItems": len(items)}
        case "mapping":
            more = _or_reference(type_schema(type.items[1])) if type.items else {}
            return {"type": "object", "additionalProperties": more}
        case "record":
            fields = type.settings or {}
            required = [name for name, parameter in fields.items() if parameter.required]
            return {**_closed(fields), **({"required": required} if required else {})}
        case _:
            names = {"none": "null", "bool": "boolean", "int": "integer", "float": "number"}
            sides = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
            bounds = {sides[side]: bound for side, bound in type.bounds}
            return {"type": names.get(type.form, "string"), **bounds}
