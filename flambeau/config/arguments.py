"""The arguments of a function or constructor, read from source, and what goes through its `**kwargs`."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, replace
from typing import TYPE_CHECKING, Any

from flambeau.config.lineage import Lineage, is_dataclass, lineage
from flambeau.config.source import Definition, FunctionNode, Module, Source, class_functions, name_of

if TYPE_CHECKING:
    from flambeau.config.types import Type

_TRANSPARENT = re.compile(
    r"(^|\.)_?(no_grad|inference_mode|enable_grad|abstractmethod|override|final|deprecated\w*|lru_cache|cache|wraps"
    r"|staticmethod|classmethod|contextmanager|typechecked|beartype|validate_params|register\w*(\.\w+)?|handle_legacy_interface)$"
)
"""Decorators that leave a signature as it is written; under any other a function is open."""


class Code(str):
    """A default that is not a literal, as its source text."""


@dataclass(eq=False)
class Parameter:
    """One argument of a part, or one setting of the engine."""

    name: str
    annotation: str
    """Source text of the annotation; empty if there is none."""
    default: Any
    """The literal default, its text (:class:`Code`), or MISSING."""
    node: ast.expr | None = None
    module: Module | None = None
    source: Source | None = None
    docs: tuple[str, ...] = ()
    """Docstrings that may describe it."""
    positional: bool = True
    """Whether it can be given by position."""

    @property
    def required(self) -> bool:
        """Whether a call fails without it."""
        return self.default is MISSING

    @functools.cached_property
    def type(self) -> Type:
        """The type that the annotation says."""
        from flambeau.config.types import ANY, read_type

        if self.node is None or self.module is None or self.source is None:
            return ANY
        return read_type(self.node, self.module, self.source)

    @functools.cached_property
    def doc(self) -> str:
        """What it means, in one paragraph, from the docstring; empty if that is silent."""
        for text in self.docs:
            pattern = rf"^([ \t]*)\*{{0,2}}{re.escape(self.name)}\b[^:\n]*:[ \t]*(.+(?:\n\1[ \t]+\S.*)*)"
            if found := re.search(pattern, text, re.MULTILINE):
                return " ".join(found[2].split())
        return ""


Parameters = dict[str, Parameter]


def constructor_arguments(line: Lineage, start: int, source: Source) -> tuple[Parameters, bool]:
    """What a class takes, by the first of its classes from `start` on that says."""
    for position, definition in enumerate(line.classes[start:], start):
        assert isinstance(definition.node, ast.ClassDef)
        functions = class_functions(definition.node)
        docs = _docs(definition.node)
        for name in ("__new__", "__init__"):
            if function := functions.get(name):
                method = Definition(definition.module, function, definition.node)
                return function_arguments(method, source, bound=True, line=line, position=position, docs=docs)
        if _assigns_constructor(definition.node):
            return {}, True
        if is_dataclass(definition.node):
            return _dataclass_fields(line, position, source), line.unread
        if definition.node.decorator_list and _makes_constructor(definition.node):
            return {}, True
    return {}, line.unread


def _assigns_constructor(node: ast.ClassDef) -> bool:
    """Whether `__init__` is not written as a function: `__init__ = partialmethod(...)`."""
    targets = [target for item in node.body if isinstance(item, ast.Assign) for target in item.targets]
    return any(name_of(target) in ("__init__", "__new__") for target in targets)


def _makes_constructor(node: ast.ClassDef) -> bool:
    """Whether a decorator of another library writes `__init__` (attrs, pydantic)."""
    names = {name_of(decorator) for decorator in node.decorator_list}
    return any(re.search(r"(^|\.)(attrs?|s|define|frozen|mutable|dataclass\w*)$", name) for name in names)


def _dataclass_fields(line: Lineage, start: int, source: Source) -> Parameters:
    """Fields of a dataclass, its bases' first, as its generated `__init__` takes them."""
    fields: Parameters = {}
    for definition in reversed(line.classes[start:]):
        assert isinstance(definition.node, ast.ClassDef)
        if not is_dataclass(definition.node):
            continue
        body = definition.node.body
        for item, following in zip(body, [*body[1:], None], strict=True):
            if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
                continue
            annotation = name_of(item.annotation).rpartition(".")[2]
            name = item.target.id
            if annotation in ("ClassVar", "KW_ONLY"):
                continue
            default, is_argument = _field_default(item.value)
            if not is_argument:
                fields.pop(name, None)
                continue
            doc = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                doc = f"{name}: {' '.join(str(following.value.value).split())}"
            node = item.annotation
            if annotation == "InitVar" and isinstance(node, ast.Subscript):
                node = node.slice
            fields[name] = Parameter(
                name,
                ast.unparse(node),
                default,
                node,
                definition.module,
                source,
                (doc, *_docs(definition.node)),
            )
    return fields


def _field_default(value: ast.expr | None) -> tuple[Any, bool]:
    """The default of a dataclass field, and whether the field is an argument of `__init__`."""
    if not isinstance(value, ast.Call) or name_of(value).rpartition(".")[2] != "field":
        return _default(value), True
    options = {keyword.arg: keyword.value for keyword in value.keywords}
    is_argument = not ("init" in options and _default(options["init"]) is False)
    if "default" in options:
        return _default(options["default"]), is_argument
    if "default_factory" in options:
        empty: Mapping[str, Any] = {"list": [], "dict": {}, "tuple": (), "set": set()}
        factory = ast.unparse(options["default_factory"])
        return empty.get(factory, Code(f"{factory}()")), is_argument
    return MISSING, is_argument


# --- functions ---------------------------------------------------------------------------------------------


def _docs(node: ast.ClassDef | FunctionNode) -> tuple[str, ...]:
    text = ast.get_docstring(node)
    return (text,) if text else ()


def _default(node: ast.expr | None) -> Any:
    if node is None:
        return MISSING
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Path", "pathlib.Path") and len(node.args) == 1:
        node = node.args[0]  # a configuration states a path as text
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return Code(ast.unparse(node))


def function_arguments(
    function: Definition,
    source: Source,
    *,
    bound: bool,
    line: Lineage | None = None,
    position: int = 0,
    docs: tuple[str, ...] = (),
    depth: int = 0,
) -> tuple[Parameters, bool]:
    """The keyword arguments of a function, those handed on by `**kwargs` too, and whether it is open."""
    node = function.node
    assert not isinstance(node, ast.ClassDef)
    arguments = node.args
    docs = (*_docs(node), *docs)
    positional = [*arguments.posonlyargs, *arguments.args]
    padding: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = list(zip(positional, [*padding, *arguments.defaults], strict=True))[1 if bound else 0 :]
    only_positional = {argument.arg for argument in arguments.posonlyargs}
    keyword = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    parameters = {
        argument.arg: Parameter(
            argument.arg,
            ast.unparse(argument.annotation) if argument.annotation else "",
            _default(default),
            argument.annotation,
            function.module,
            source,
            docs,
            by_position,
        )
        for group, by_position in ((pairs, True), (keyword, False))
        for argument, default in group
        if argument.arg not in only_positional
    }
    is_open = not all(_TRANSPARENT.search(name_of(decorator)) for decorator in node.decorator_list)
    if arguments.kwarg is not None:
        more, more_open = _through_kwargs(function, arguments.kwarg.arg, source, line, position, depth)
        parameters |= {name: parameter for name, parameter in more.items() if name not in parameters}
        is_open = is_open or more_open
    return parameters, is_open


def _through_kwargs(
    function: Definition, kwargs: str, source: Source, line: Lineage | None, position: int, depth: int
) -> tuple[Parameters, bool]:
    """What a function takes by `**kwargs`, from the uses of that name; True if one is not understood."""
    accepted: Parameters = {}
    understood: set[ast.AST] = set()
    is_open = depth > 8
    for node in ast.walk(function.node):
        if isinstance(node, ast.Raise) or (isinstance(node, ast.If) and not node.orelse and _only_raises(node)):
            understood |= {name for name in ast.walk(node) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.Call):
            by_method = isinstance(node.func, ast.Attribute) and _is_name(node.func.value, kwargs)
            if by_method and node.func.attr in ("pop", "get") and node.args:  # type: ignore[attr-defined]
                name = _default(node.args[0])
                accepted[str(name)] = Parameter(str(name), "", None)
                understood.add(node.func.value)  # type: ignore[attr-defined]
            handed = [item.value for item in node.keywords if item.arg is None and _is_name(item.value, kwargs)]
            if handed and not is_open:
                taken = _taken_by_call(node, function, source, line, position, depth)
                if taken is not None:
                    accepted |= taken[0]
                    is_open = is_open or taken[1]
                    understood |= set(handed)
        elif isinstance(node, ast.Subscript) and _is_name(node.value, kwargs):
            name = _default(node.slice)
            if isinstance(name, str) and not isinstance(name, Code):
                accepted.setdefault(name, Parameter(name, "", None))
                understood.add(node.value)
        elif isinstance(node, ast.Compare) and len(node.comparators) == 1 and _is_name(node.comparators[0], kwargs):
            understood.add(node.comparators[0])
    used = [node for node in ast.walk(function.node) if _is_name(node, kwargs)]
    return accepted, is_open or any(node not in understood for node in used)


def _only_raises(node: ast.If) -> bool:
    return all(isinstance(item, ast.Raise) for item in node.body)


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _taken_by_call(
    call: ast.Call, function: Definition, source: Source, line: Lineage | None, position: int, depth: int
) -> tuple[Parameters, bool] | None:
    """What a call takes beside the arguments that it is written with; None if the callee cannot be read."""
    callee = call.func
    first = 0
    is_init = isinstance(callee, ast.Attribute) and callee.attr in ("__init__", "__new__")
    if is_init and line is not None:
        assert isinstance(callee, ast.Attribute)
        if isinstance(callee.value, ast.Call) and name_of(callee.value) == "super":
            parameters, is_open = constructor_arguments(line, position + 1, source)
        else:
            base = source.qualify(function.module, callee.value)
            found = source.resolve(base) if base else None
            if not isinstance(found, Definition) or not isinstance(found.node, ast.ClassDef):
                return None
            parameters, is_open = constructor_arguments(lineage(found, source), 0, source)
            first = 1  # Base.__init__(self, ...)
    else:
        dotted = source.qualify(function.module, callee)
        found = source.resolve(dotted) if dotted else None
        if not isinstance(found, Definition):
            return None
        if isinstance(found.node, ast.ClassDef):
            parameters, is_open = constructor_arguments(lineage(found, source), 0, source)
        else:
            parameters, is_open = function_arguments(found, source, bound=False, depth=depth + 1)
    written = {keyword.arg for keyword in call.keywords}
    by_position = [argument for argument in call.args[first:] if not isinstance(argument, ast.Starred)]
    written |= {name for name, _ in zip((n for n, p in parameters.items() if p.positional), by_position, strict=False)}
    return {name: replace(item) for name, item in parameters.items() if name not in written}, is_open
