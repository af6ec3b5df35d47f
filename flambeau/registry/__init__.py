"""Names of parts: registering them, finding them without importing, loading them."""

from flambeau.registry.functions import Function, fault_of_function, load_function
from flambeau.registry.load import (
    DATA_ARGUMENTS,
    EXTRAS,
    FILE_READERS,
    INSTALLS,
    load_part,
    refusal,
    suggest_part,
    takes_batch,
    takes_data,
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
    "takes_data",
    "DATA_ARGUMENTS",
    "refusal",
    "suggest_part",
]
