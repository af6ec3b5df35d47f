"""Keep secrets out of what a run writes down; which keys hold them, `flambeau.config.secrets` says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from flambeau.config.secrets import is_secret

MASK = "***"

_ASSIGNED = re.compile(r"-*([A-Za-z_][\w.\-]*)=(?=.)", re.DOTALL)
# A key inside a YAML flow mapping, with its plain or quoted value: `{api_key: abc, entity: me}`.
_FLOW = re.compile(r"""([{,]\s*["']?([A-Za-z_][\w.\-]*)["']?\s*:\s*)("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^,{}\[\]]+)""")
_URL = re.compile(r"(\w://[^\s/:@]*:)[^\s/@]+(?=@)")


def mask_command(arguments: Sequence[str]) -> list[str]:
    """A command line with the values of secret keys replaced by `***`.

    Understands `key=value`, `--key=value`, `--key value`, keys inside a value
    (`tracking={wandb: {api_key: x}}`) and passwords in addresses (`https://me:password@host`).
    """
    masked: list[str] = []
    hide_next = False
    for argument in arguments:
        if hide_next and not argument.startswith("-"):
            masked.append(MASK)
            hide_next = False
            continue
        hide_next = False
        assigned = _ASSIGNED.match(argument)
        if assigned and is_secret(assigned[1]):
            masked.append(assigned[0] + MASK)
            continue
        if argument.startswith("-") and "=" not in argument:
            hide_next = is_secret(argument)
        argument = _FLOW.sub(lambda m: m[1] + MASK if is_secret(m[2]) else m[0], argument)
        masked.append(_URL.sub(rf"\g<1>{MASK}", argument))
    return masked


def mask_values(values: Any) -> Any:
    """A copy of nested configuration values with those of secret keys replaced by `***` (empty ones stay)."""
    if isinstance(values, Mapping):
        return {
            key: MASK if is_secret(str(key)) and value not in (None, "") else mask_values(value)
            for key, value in values.items()
        }
    if isinstance(values, list | tuple):
        return [mask_values(value) for value in values]
    return _URL.sub(rf"\g<1>{MASK}", values) if isinstance(values, str) else values
