"""`flambeau list [KIND]`: the parts that a configuration can name, with their arguments."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flambeau.config.catalog import Catalog
from flambeau.config.project import find_project
from flambeau.config.signature import Code, Parameter, Signature
from flambeau.config.slots import SLOTS, Slot
from flambeau.console import console, is_terminal
from flambeau.errors import EXIT_DONE, UsageError
from flambeau.registry import KINDS, Part, find_parts

HELP = "list models, data, criterions and other parts with their arguments"

_PLURALS = {kind: kind if kind == "data" else f"{kind}s" for kind in KINDS}
# Of two sections of one kind, the first.
_SLOTS: dict[str, Slot] = {slot.kind: slot for slot in reversed(list(SLOTS.values())) if slot.kind is not None}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("kind", nargs="?", help=f"one of {', '.join(_PLURALS.values())} (default: an overview)")
    parser.add_argument("--json", action="store_true", help="one JSON object of lists, for programs")


def run(args: argparse.Namespace) -> int:
    """List the parts."""
    kinds = list(KINDS) if args.kind is None else [_kind(args.kind)]
    catalog = Catalog(find_project().root)
    parts = find_parts(catalog.root)
    of_kind = {kind: sorted((part for part in parts.values() if part.kind == kind), key=_order) for kind in kinds}
    if args.json:
        listing = {_PLURALS[kind]: [_as_json(part, catalog) for part in found] for kind, found in of_kind.items()}
        print(json.dumps(listing, indent=2))
    elif args.kind is None:
        _print_overview(of_kind)
    else:
        _print_parts(of_kind[kinds[0]], kinds[0], catalog)
    return EXIT_DONE


def _kind(word: str) -> str:
    """The kind that a word on the command line means: `models`, `model`, `Models`."""
    words = {**{plural: kind for kind, plural in _PLURALS.items()}, **{kind: kind for kind in KINDS}}
    words |= {slot.section: slot.kind for slot in SLOTS.values() if slot.kind is not None}
    if word.lower() in words:
        return words[word.lower()]
    import difflib

    near = difflib.get_close_matches(word.lower(), words, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"the kinds are {', '.join(_PLURALS.values())}"
    raise UsageError(f"there is no kind of part '{word}'", remedy=hint)


def _order(part: Part) -> str:
    return part.name


def _print_overview(of_kind: dict[str, list[Part]]) -> None:
    width = max(map(len, _PLURALS.values()))
    for kind, found in of_kind.items():
        names = ", ".join(part.name for part in found) or "none registered; by import path"
        _say(f"{_PLURALS[kind]:<{width}}", f"  {names}")
    _say(
        "",
        f"\n`flambeau list {_PLURALS['model']}` shows arguments; a name with a dot is an import path, such as",
    )
    _say("", "`torch.nn.HuberLoss` or `my_project.models.unet.UNet`, and takes what its own signature says")


def _print_parts(parts: Sequence[Part], kind: str, catalog: Catalog) -> None:
    if not parts:
        _say("", f"no {kind} is registered; a configuration can name one by its import path")
    for place, part in enumerate(parts):
        signature = _signature(part, catalog)
        summary = part.summary or (signature.summary if signature is not None else "")
        _say(f"{'' if place == 0 else chr(10)}{part.name}", f"  {part.target}")
        if summary:
            _say("", f"  {summary}")
        for parameter in _arguments(kind, signature, catalog):
            _say("", f"    {_declaration(parameter)}{_comment(parameter)}")
        if signature is not None and catalog.takes_any(_SLOTS[kind], signature):
            _say("", "    **kwargs")
    slot = _SLOTS[kind]
    if settings := catalog.settings(slot):
        sections = ", ".join(own.section for own in SLOTS.values() if own.kind == kind)
        _say(f"\n{sections}", "  and with every part, read by the engine")
        for parameter in settings.values():
            _say("", f"    {_declaration(parameter)}{_comment(parameter)}")


def _comment(parameter: Parameter) -> str:
    return f"  # {parameter.doc}" if parameter.doc else ""


def _say(bold: str, text: str) -> None:
    """A line, its head in bold on a terminal."""
    if not is_terminal():
        print(bold + text)
        return
    from rich.text import Text

    console().print(Text(bold, style="bold") + Text(text))


def _signature(part: Part, catalog: Catalog) -> Signature | None:
    """The part's signature; None if the package of an alias is not installed."""
    found = catalog.signature(part.target)
    return found if isinstance(found, Signature) else None


def _arguments(kind: str, signature: Signature | None, catalog: Catalog) -> list[Parameter]:
    """What a configuration may give to the part itself."""
    return list(catalog.arguments(_SLOTS[kind], signature).values()) if signature is not None else []


def _declaration(parameter: Parameter) -> str:
    """`width: float = 1.0`, as in Python."""
    default = "" if parameter.required else repr(parameter.default)
    if isinstance(parameter.default, Code):
        default = str(parameter.default)
    annotation = parameter.type.code() if "Annotated" in parameter.annotation else parameter.annotation
    if not annotation:
        return parameter.name + (f"={default}" if default else "")
    return f"{parameter.name}: {annotation}" + (f" = {default}" if default else "")


def _as_json(part: Part, catalog: Catalog) -> dict[str, Any]:
    signature = _signature(part, catalog)
    file: Path = part.file
    return {
        "name": part.name,
        "target": part.target,
        "summary": part.summary or (signature.summary if signature is not None else ""),
        "file": str(file),
        "line": part.line,
        "takes_any": signature is None or catalog.takes_any(_SLOTS[part.kind], signature),
        "arguments": [
            {
                "name": item.name,
                "type": item.annotation or None,
                "required": item.required,
                "default": None if item.required else _json_default(item.default),
                "doc": item.doc,
            }
            for item in _arguments(part.kind, signature, catalog)
        ],
    }


def _json_default(default: Any) -> Any:
    """A literal default as it is; others, and those that JSON lacks (inf, nan, sets), as text."""
    if isinstance(default, (tuple, list)):
        return [_json_default(item) for item in default]
    is_plain = default is None or isinstance(default, (bool, int, str))
    is_finite = isinstance(default, float) and default - default == 0
    return default if is_plain or is_finite else str(default)
