"""The data files inside scikit-learn's package, read without importing it: that would take a second."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

from flambeau.errors import MissingExtraError


def read_sklearn_file(name: str, what: str) -> str:
    """The text of a file of scikit-learn's `datasets/data`, unpacked if its name ends in .gz.

    Args:
        name: of the file.
        what: what the data are called if scikit-learn is missing.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise MissingExtraError(f"scikit-learn, which holds {what},", "digits")
    content = (Path(spec.origin).parent / "datasets" / "data" / name).read_bytes()
    return (gzip.decompress(content) if name.endswith(".gz") else content).decode("ascii")
