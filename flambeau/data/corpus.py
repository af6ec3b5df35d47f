"""A text that is there without a download: what Python's standard library says of itself."""

from __future__ import annotations

import ast
import functools
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from flambeau.errors import UsageError


@functools.cache
def standard_library_docstrings() -> str:
    """The docstrings of the standard library's modules, with the heads of what they document; about 1 MB.

    Modules of one file are taken, in the order of their names, without those that begin with `_`. They are read and
    parsed, not imported. The text is that of the Python that runs this: other versions have others, by a few percent.

    Raises:
        UsageError: this Python has no files of its standard library (it may lie in an archive).
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = []
    for path in sorted(folder.glob("[a-z]*.py")):
        tree = ast.parse(path.read_bytes())
        if text := ast.get_docstring(tree):
            texts.append(f"import {path.stem}\n\n{text}\n")
        texts += _documented(tree)
    if not texts:
        raise UsageError(
            f"{folder} has no source of Python's standard library",
            remedy="give text files of your own: data.files: 'texts/*.txt'",
        )
    return "\n".join(texts)


def _documented(node: ast.AST) -> Iterator[str]:
    for part in ast.iter_child_nodes(node):
        if isinstance(part, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if text := ast.get_docstring(part):
                yield f"{_head(part)}\n{text}\n"
            yield from _documented(part)


def _head(part: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    if isinstance(part, ast.ClassDef):
        return f"class {part.name}:"
    arguments = part.args.posonlyargs + part.args.args + part.args.kwonlyargs
    return f"def {part.name}({', '.join(argument.arg for argument in arguments)}):"
