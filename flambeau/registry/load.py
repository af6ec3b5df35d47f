"""Parts imported by name, and what may not be named in a configuration."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flambeau.errors import MissingExtraError, UsageError
from flambeau.registry.names import register
from flambeau.registry.scan import Part, find_parts, import_roots

EXTRAS: Mapping[str, str] = {
    "matplotlib": "plots",
    "huggingface_hub": "hub",
    "sklearn": "digits",
    "tensorboard": "tensorboard",
    "torchinfo": "summary",
    "torchmetrics": "metrics",
    "torchvision": "vision",
    "pyarrow": "tables",
    "datasets": "huggingface",
    "PIL": "images",
}
"""Optional packages and the extra of Flambeau that brings them."""

INSTALLS: Mapping[str, str] = {
    **{package: f"'flambeau[{extra}]'" for package, extra in EXTRAS.items()},
    "timm": "timm",
    "transformers": "transformers",
    "monai": "monai",
    "kornia": "kornia",
}
"""What to install for a package; others are not advised by name, since the name may be mistyped."""

_REFUSED = """
    pip setuptools pkg_resources distutils wheel IPython ipykernel joblib dill cloudpickle fabric invoke
    sh pexpect plumbum paramiko pytest _pytest
    torch.hub torch.package torch.serialization torch.jit torch.load torch.utils.cpp_extension
    torch.utils.model_zoo torch.ops torch.classes torch.library
    numpy.load numpy.fromfile numpy.memmap numpy.ctypeslib numpy.f2py numpy.distutils numpy.testing
    pandas.read_pickle flambeau.cli
""".split()  # noqa: SIM905
"""Modules and names beside the standard library that run code or touch files by being called."""

FILE_READERS = (
    "load",
    "loads",
    "read",
    "unpickle",
    "exec",
    "eval",
    "system",
    "popen",
    "run",
    "call",
    "compile",
)


def refusal(target: str) -> str | None:
    """Why an import path may not stand in a configuration (it would be a way to run code), or None."""
    names = target.split(".")
    if any(not name.isidentifier() for name in names):
        return "is not an import path"
    if any(name.startswith("__") for name in names):
        return "names an internal of Python"
    if names[0] in sys.stdlib_module_names:
        return "is in Python's standard library, which is refused: a configuration is not a way to run code"
    if any(target == refused or target.startswith(refused + ".") for refused in _REFUSED):
        return "is refused: calling it can run code or touch files, and a configuration is not a way in"
    return None


def load_part(kind: str, name: str, project_root: Path | None = None) -> Any:
    """Import the part of `kind` that `name` says: a registered name, or an import path with a dot.

    Whatever the part's own module raises on import is passed on as it is.

    Raises:
        UsageError: no such part, its package is not installed, it is refused, or it is of another kind.
    """
    if project_root is not None:
        for root in reversed(import_roots(project_root.resolve())):
            if str(root) not in sys.path:
                sys.path.insert(0, str(root))
    if "." in name:
        target = name
    elif (part := find_parts(project_root).get((kind, name))) is not None:
        target = part.target
    elif (kind, name) in register.recorded:
        return register.recorded[kind, name]  # registered in a notebook or a script that runs
    else:
        raise UsageError(f"no {kind} is called {name!r}", remedy=suggest_part(kind, name, find_parts(project_root)))
    if reason := refusal(target):
        raise UsageError(f"{kind}: {target} {reason}")
    found = import_object(target, import_roots(project_root.resolve()) if project_root is not None else ())
    verify_kind(kind, found, target)
    return found


def suggest_part(kind: str, name: str, parts: Mapping[tuple[str, str], Part]) -> str:
    """The nearest right name, or all of them."""
    import difflib

    names = sorted(own for of, own in parts if of == kind)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    others = [of for of, own in parts if own == name]
    if others:
        return f"{name!r} is a {others[0]}"
    return f"there are: {', '.join(names)}" if names else f"no {kind} is registered; give an import path with a dot"


def import_object(target: str, own: Sequence[Path] = ()) -> Any:
    """The object at a dotted path: the longest prefix that is a module, then attributes.

    Args:
        own: folders of the project's modules, see `_hidden_module`.
    """
    import importlib
    import importlib.util

    names = target.split(".")
    top = names[0]
    if len(names) > 2 and (hidden := _hidden_module(names, own)) is not None:
        found, rest = hidden
        for name in rest:
            found = getattr(found, name)
        return found
    if top not in sys.modules and importlib.util.find_spec(top) is None:
        if top in EXTRAS:
            raise MissingExtraError(top, EXTRAS[top])
        install = f"pip install {INSTALLS[top]}" if top in INSTALLS else "install it, or correct the name"
        raise UsageError(f"{top} is not installed, which {target} needs", remedy=install)
    found = importlib.import_module(top)
    path = top
    for name in names[1:]:
        path = f"{path}.{name}"
        # As Python's own `from package import name`: an attribute first, then a submodule.
        if not hasattr(found, name) and hasattr(found, "__path__") and importlib.util.find_spec(path) is not None:
            importlib.import_module(path)
        if not hasattr(found, name):
            raise UsageError(f"{path} does not exist", remedy=f"nothing in {found.__name__} is called {name!r}")
        found = getattr(found, name)
    return found


DATA_ARGUMENTS: Mapping[str, int] = {"criterion": 2, "transform": 1}
"""Kinds whose part may be a function that is itself called with data, and with how many arguments."""


def _hidden_module(names: Sequence[str], own: Sequence[Path]) -> tuple[Any, Sequence[str]] | None:
    """A project's module in a folder without `__init__.py` that an installed package hides, and the names after it.

    A project may have a folder `datasets/`, and the library of that name be installed: Python then finds the library
    alone, whatever the order of the import path.
    """
    import importlib.util

    for root in own:
        file = next(
            (
                (end, path)
                for end in range(len(names) - 1, 1, -1)
                if (path := root.joinpath(*names[:end]).with_suffix(".py")).is_file()
            ),
            None,
        )
        if file is None:
            continue
        end, path = file
        top = sys.modules.get(names[0]) or importlib.util.find_spec(names[0])
        origin = getattr(top, "__file__", None) or getattr(top, "origin", None)
        if origin is None or Path(origin).is_relative_to(root):
            return None  # Python finds the project's own
        name = ".".join(names[:end])
        if (loaded := sys.modules.get(name)) is not None and getattr(loaded, "__file__", None) == str(path):
            return loaded, names[end:]
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module, names[end:]
    return None


def takes_batch(criterion: Any) -> bool:
    """Whether a criterion is itself a function of (outputs, targets), to be called with each batch."""
    return takes_data("criterion", criterion)


def takes_data(kind: str, part: Any) -> bool:
    """Whether a part is itself a function of data: a criterion of (outputs, targets), a transform of a sample.

    A function with so many required positional parameters is one; its other parameters are what a configuration sets.
    Any other function, and every class, makes the part.
    """
    import inspect

    if kind not in DATA_ARGUMENTS or isinstance(part, type) or not callable(part):
        return False
    try:
        parameters = inspect.signature(part).parameters.values()
    except ValueError:
        return False
    by_position = [item for item in parameters if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)]
    return sum(item.default is item.empty for item in by_position) >= DATA_ARGUMENTS[kind]


TRAINER_METHODS = ("fit", "update", "evaluate", "save")
"""What a class has that is a copy of flambeau's Trainer."""


def verify_kind(kind: str, part: Any, target: str) -> None:
    """Refuse an object that cannot be a part of `kind`.

    Raises:
        UsageError: it is of another kind, or is defined in a module that :func:`refusal` refuses.
    """
    home = getattr(part, "__module__", None) or ""
    name = getattr(part, "__qualname__", "")
    reason = refusal(f"{home}.{name}".replace(".<locals>", "")) if home not in ("", "__main__") else None
    if reason and not reason.startswith("is not an import path"):
        raise UsageError(f"{kind}: {target} is {home}.{name}, which {reason}")
    fault = _fault_of_kind(kind, part, home)
    if fault:
        raise UsageError(f"{target} is no {kind}: {fault}")


def _fault_of_kind(kind: str, part: Any, home: str) -> str | None:
    if not isinstance(part, type):
        if not callable(part) or kind not in ("model", "data", "criterion", "transform"):
            return f"a {kind} is a class"
        if home.split(".")[0] == "torch":
            return "of torch's own only classes are taken"
        if (name := getattr(part, "__name__", "").split("_")[0]) in FILE_READERS and home.split(".")[0] != "flambeau":
            return f"functions called {name}... are refused, as they can run code or touch files"
        return None
    bases = {f"{base.__module__}.{base.__qualname__}" for base in part.__mro__}
    is_module = "torch.nn.modules.module.Module" in bases
    if kind == "optimizer":
        return None if "torch.optim.optimizer.Optimizer" in bases else "it is not a torch.optim.Optimizer"
    if kind == "model":
        return None if is_module else "it is not a torch.nn.Module"
    if kind == "trainer":
        ours = any(base.__name__ == "Trainer" and base.__module__.startswith("flambeau.") for base in part.__mro__)
        copied = all(hasattr(part, method) for method in TRAINER_METHODS)
        return None if ours or copied else "it is not a flambeau Trainer"
    if kind == "transform":
        methods = {"__call__", "on_batch"}
        called = any(methods & vars(base).keys() for base in part.__mro__) and home.split(".")[0] != "torch"
        return None if is_module or called else "it is neither a torch.nn.Module nor has it __call__ or on_batch"
    if kind == "criterion":
        called = any("__call__" in vars(base) for base in part.__mro__) and home.split(".")[0] != "torch"
        return None if is_module or called else "it is neither a torch.nn.Module nor called"
    if home.split(".")[0] == "torch":
        return "of torch's own, classes of this kind do not exist"
    needed = {
        "metric": ("update", "compute", "reset"),
        "tracker": ("log_scalars", "close"),
        "scheduler": ("__call__",),
    }
    missing = [method for method in needed.get(kind, ()) if not any(method in vars(base) for base in part.__mro__)]
    return f"it has no method {missing[0]}" if missing else None
