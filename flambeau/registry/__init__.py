"""Names of parts: registering them, finding them without importing, loading them."""

from flambeau.registry.functions import Function, fault_of_function, load_function
from flambeau.registry.load import (
    EXTRAS,
    FILE_READERS,
    INSTALLS,
    load_part,
    refusal,
    suggest_part,
    takes_batch,
    verify_kind,
)
from flambeau.registry.names import KINDS, Register, register
from flambeau.registry.scan import Part, Scan, find_parts, import_roots, scan_parts

__all__ = [
    "register",
    "Register",
    "KINDS",
    "EXTRAS",
    "INSTALLS",
    "FILE_READERS",
    "Part",
    "Scan",
    "find_parts",
    "scan_parts",
    "import_roots",
    "load_part",
    "Function",
    "load_function",
    "fault_of_function",
    "verify_kind",
    "takes_batch",
    "refusal",
    "suggest_part",
]
