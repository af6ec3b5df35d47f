"""Types of values, read from annotations: what a value may be, and what is wrong with one.

An annotation that cannot be read, or that says something a configuration cannot write, lets every value pass:
a wrong alarm would cost more than a fault that the call itself finds.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flambeau.config.lineage import is_dataclass
from flambeau.config.nearest import did_you_mean
from flambeau.config.signature import Parameter, read_class
from flambeau.config.source import Assigned, Definition, Module, Source, name_of

Form = Literal[
    "any", "none", "bool", "int", "float", "str", "path", "literal", "union", "list", "tuple", "mapping",
    "record", "object", "function",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Type:
    """What values an annotation allows; `str()` says it to people."""

    form: Form
    items: tuple[Type, ...] = ()
    """Members of a union, types of a tuple's places, of a list's items, of a mapping's key and value."""
    values: tuple[Any, ...] = ()
    """The choices of a literal."""
    bounds: tuple[tuple[str, float], ...] = ()
    """(`ge`, 1) and the like, of a number."""
    settings: Mapping[str, Parameter] | None = None
    """The keys of a record (a dataclass written as a mapping)."""

    def __str__(self) -> str:
        if self.form == "union":
            return " or ".join(str(item) for item in self.items)
        if self.form == "literal":
            return ("one of " if len(self.values) > 1 else "") + ", ".join(map(written, self.values))
        if self.form == "list":
            return f"a list of {_plural(self.items[0])}" if self.items else "a list"
        if self.form == "tuple":
            return f"a list of {len(self.items)} values"
        words = {
            "none": "null", "bool": "true or false", "int": "an integer", "float": "a number", "str": "text",
            "path": "a path", "mapping": "a mapping", "record": "a mapping", "any": "anything",
            "object": "an object", "function": "the import path of a function",
        }  # fmt: skip
        return " ".join([words[self.form], *(_bound(*bound) for bound in self.bounds)])

    def code(self) -> str:
        """The type as Python has it, bounds written out: `int (>= 1) | None`."""
        match self.form:
            case "union":
                return " | ".join(item.code() for item in self.items)
            case "literal":
                return f"Literal[{', '.join(map(repr, self.values))}]"
            case "list" | "tuple":
                inner = f"[{', '.join(item.code() for item in self.items)}]" if self.items else ""
                return self.form + inner
        names = {"none": "None", "path": "Path", "mapping": "dict", "record": "dict", "any": "Any",
                 "function": "import path"}  # fmt: skip
        bounds = ", ".join(f"{_SIGNS[side]} {bound:g}" for side, bound in self.bounds)
        return names.get(self.form, self.form) + (f" ({bounds})" if bounds else "")


ANY = Type("any")
_OBJECT = Type("object")
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass(frozen=True)
class Fault:
    """What is wrong with a value, and where within it."""

    path: tuple[str | int, ...]
    message: str
    suggestion: str | None = None


# --- reading -----------------------------------------------------------------------------------------------

_BUILTIN: Mapping[str, Type] = {
    "bool": Type("bool"), "int": Type("int"), "float": Type("float"), "str": Type("str"),
    "list": Type("list"), "tuple": Type("list"), "set": Type("list"), "dict": Type("mapping"),
    "None": Type("none"), "os.PathLike": Type("path"),
    "pathlib.Path": Type("path"), "pathlib.PurePath": Type("path"),
}  # fmt: skip
_LISTS = {
    "list",
    "List",
    "Sequence",
    "MutableSequence",
    "Collection",
    "set",
    "Set",
    "frozenset",
    "AbstractSet",
}
_MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping"}
_OBJECTS = {"Tensor", "Parameter", "Module", "Optimizer", "Generator"}
_HOMES = ("typing", "typing_extensions", "collections.abc", "annotated_types", "pathlib", "os", "")


def read_type(node: ast.expr, module: Module, source: Source, depth: int = 0) -> Type:
    """The type that an annotation in a module means; :data:`ANY` where that cannot be read."""
    if depth > 12:
        return ANY
    if isinstance(node, ast.Constant):
        if node.value is None:
            return _BUILTIN["None"]
        if isinstance(node.value, str):
            try:
                return read_type(ast.parse(node.value.strip(), mode="eval").body, module, source, depth + 1)
            except SyntaxError:
                return ANY
        return ANY
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union([read_type(side, module, source, depth + 1) for side in (node.left, node.right)])
    if isinstance(node, ast.Subscript):
        return _read_subscript(node, module, source, depth)
    if isinstance(node, (ast.Name, ast.Attribute)):
        dotted = source.qualify(module, node)
        return _read_name(dotted, source, depth) if dotted else ANY
    return ANY


def _read_name(dotted: str, source: Source, depth: int) -> Type:
    if dotted in _BUILTIN:
        return _BUILTIN[dotted]
    home, _, name = dotted.rpartition(".")
    if home in _HOMES:
        return Type("list") if name in _LISTS else Type("mapping") if name in _MAPPINGS else _bare_typing(name)
    if home.split(".")[0] == "torch" and name in _OBJECTS:
        return _OBJECT
    if home.split(".")[0] == "flambeau" and name == "Function":
        return Type("function")
    if home == "torch":
        return ANY  # dtype, device, Size: not worth reading the largest module for
    entity = source.resolve(dotted)
    if isinstance(entity, Assigned):
        return read_type(entity.value, entity.module, source, depth + 1)
    if isinstance(entity, Definition) and is_dataclass(entity.node):
        signature = read_class(entity, source)
        return ANY if signature.open else Type("record", settings=signature.parameters)
    return ANY


def _bare_typing(name: str) -> Type:
    return {"Tuple": Type("list"), "Text": Type("str")}.get(name, ANY)


def _read_subscript(node: ast.Subscript, module: Module, source: Source, depth: int) -> Type:
    dotted = source.qualify(module, node.value) or ""
    home, _, name = dotted.rpartition(".")
    if home not in _HOMES:
        return ANY
    arguments = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]

    def read(argument: ast.expr) -> Type:
        return read_type(argument, module, source, depth + 1)

    if name == "Literal":
        return _read_literal(arguments)
    if name == "Annotated":
        return _bounded(read(arguments[0]), arguments[1:])
    if name == "Optional":
        return _union([read(arguments[0]), _BUILTIN["None"]])
    if name == "Union":
        return _union([read(argument) for argument in arguments])
    if name in ("Final", "Required", "NotRequired", "ClassVar", "InitVar"):
        return read(arguments[0])
    if name in _LISTS or (name in ("tuple", "Tuple") and _is_ellipsis(arguments[-1])):
        return Type("list", (read(arguments[0]),))
    if name in ("tuple", "Tuple"):
        return Type("tuple", tuple(read(argument) for argument in arguments))
    if name in _MAPPINGS and len(arguments) == 2:
        return Type("mapping", (read(arguments[0]), read(arguments[1])))
    return ANY


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is Ellipsis


def _read_literal(arguments: Sequence[ast.expr]) -> Type:
    try:
        return Type("literal", values=tuple(ast.literal_eval(argument) for argument in arguments))
    except ValueError:
        return ANY


def _bounded(inner: Type, annotations: Sequence[ast.expr]) -> Type:
    """`inner` with the bounds that annotated_types say: `Ge(1)`, `Interval(ge=0, lt=1)`."""
    bounds = []
    for call in annotations:
        if not isinstance(call, ast.Call):
            continue
        name = name_of(call).rpartition(".")[2]
        pairs = [(keyword.arg or "", keyword.value) for keyword in call.keywords]
        if name in ("Ge", "Gt", "Le", "Lt"):
            pairs = [(name.lower(), value) for value in [*call.args, *(value for _, value in pairs)]]
        elif name != "Interval":
            continue
        for side, value in pairs:
            try:
                number = ast.literal_eval(value)
            except ValueError:
                continue
            if side in _COMPARE and isinstance(number, (int, float)):
                bounds.append((side, number))
    return Type(inner.form, inner.items, inner.values, tuple(bounds), inner.settings)


def _union(members: Sequence[Type]) -> Type:
    """A union, flat, without what a configuration cannot write; anything if one member is anything."""
    flat = [item for member in members for item in (member.items if member.form == "union" else (member,))]
    writable = [item for item in flat if item.form != "object"]
    if not any(item.form not in ("none", "any") for item in writable) or any(item.form == "any" for item in writable):
        return ANY
    return writable[0] if len(writable) == 1 else Type("union", tuple(writable))


# --- judging -----------------------------------------------------------------------------------------------

_COMPARE: Mapping[str, tuple[str, Any]] = {
    "ge": ("of at least", lambda value, bound: value >= bound),
    "gt": ("above", lambda value, bound: value > bound),
    "le": ("of at most", lambda value, bound: value <= bound),
    "lt": ("below", lambda value, bound: value < bound),
}


def find_faults(value: Any, type: Type, path: tuple[str | int, ...] = ()) -> list[Fault]:
    """What is wrong with a value, and with what is within it; nothing for text with a deferred reference."""
    if isinstance(value, str) and "${" in value:
        return []
    if type.form == "union":
        return _faults_of_union(value, type, path)
    if type.form == "record" and isinstance(value, Mapping):
        return _faults_of_record(value, type.settings or {}, path)
    if type.form == "mapping" and isinstance(value, Mapping):
        of = type.items[1] if type.items else ANY
        return [fault for key, item in value.items() for fault in find_faults(item, of, (*path, key))]
    if type.form == "list" and isinstance(value, list):
        of = type.items[0] if type.items else ANY
        return [fault for place, item in enumerate(value) for fault in find_faults(item, of, (*path, place))]
    if type.form == "tuple" and isinstance(value, list) and len(value) == len(type.items):
        pairs = enumerate(zip(value, type.items, strict=True))
        return [fault for place, (item, of) in pairs for fault in find_faults(item, of, (*path, place))]
    if type.form == "literal":
        if any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in type.values):
            return []
        near = did_you_mean(value, map(str, type.values)) if isinstance(value, str) else None
        return [Fault(path, f"expected {type}, not {written(value)}", near)]
    if not _has_form(value, type.form):
        return [Fault(path, f"expected {type}, not {written(value)}", _remedy(value, type.form))]
    if any(not _COMPARE[side][1](value, bound) for side, bound in type.bounds):
        return [Fault(path, f"expected {type}, not {written(value)}")]
    return []


def takes_function(type: Type) -> bool:
    """Whether a text is the import path of a function."""
    return any(item.form == "function" for item in (type, *(type.items if type.form == "union" else ())))


def _has_form(value: Any, form: Form) -> bool:
    match form:
        case "any" | "object":
            return True
        case "none":
            return value is None
        case "bool":
            return isinstance(value, bool)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "float":
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        case "str" | "path" | "function":
            return isinstance(value, str)
        case _:
            return False


def _remedy(value: Any, form: Form) -> str | None:
    if form == "int" and isinstance(value, float) and math.isfinite(value) and value == int(value):
        return f"write {int(value)}"
    if form == "bool" and isinstance(value, (str, int)) and str(value).lower() in ("yes", "on", "1"):
        return "write true"
    if form == "bool" and isinstance(value, (str, int)) and str(value).lower() in ("no", "off", "0"):
        return "write false"
    if form in ("str", "path") and isinstance(value, (bool, int, float)):
        return "put it in quotes"
    if form in ("float", "int") and isinstance(value, str) and _is_number(value):
        return "take the quotes away"
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _faults_of_union(value: Any, type: Type, path: tuple[str | int, ...]) -> list[Fault]:
    """No faults if one member takes the value; else those of the one member that the value is shaped like."""
    faults = [find_faults(value, item, path) for item in type.items]
    if not all(faults):
        return []
    closest = [found for item, found in zip(type.items, faults, strict=True) if _resembles(value, item)]
    if len(closest) == 1:
        return closest[0]
    suggestions = [fault.suggestion for found in faults for fault in found if fault.suggestion]
    return [Fault(path, f"expected {type}, not {written(value)}", suggestions[0] if suggestions else None)]


def _resembles(value: Any, type: Type) -> bool:
    if isinstance(value, Mapping):
        return type.form in ("record", "mapping")
    if isinstance(value, list):
        return type.form in ("list", "tuple")
    return bool(type.bounds) and _has_form(value, type.form)


def _faults_of_record(
    value: Mapping[Any, Any], fields: Mapping[str, Parameter], path: tuple[str | int, ...]
) -> list[Fault]:
    faults: list[Fault] = []
    suggested: list[str] = []
    for key, item in value.items():
        if key in fields:
            faults += find_faults(item, fields[key].type, (*path, key))
            continue
        near = did_you_mean(str(key), fields)
        suggested.append(near or "")
        faults.append(Fault((*path, key), "unknown setting", near or f"there are: {', '.join(fields)}"))
    missing = [name for name, parameter in fields.items() if parameter.required and name not in value]
    # One mistyped key is one fault, not an unknown and a missing one.
    missing = [name for name in missing if not any(f"'{name}'" in near for near in suggested)]
    return [*faults, *(Fault(path, f"{name!r} is missing") for name in missing)]


def written(value: Any) -> str:
    """A value as YAML has it, for messages; long ones are cut."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a mapping"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _plural(type: Type) -> str:
    words = {"int": "integers", "float": "numbers", "str": "texts", "path": "paths", "record": "mappings"}
    return words.get(type.form, f"values, each {type}")


def _bound(side: str, bound: float) -> str:
    return f"{_COMPARE[side][0]} {bound:g}"
