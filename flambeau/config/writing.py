"""Writing YAML that any reader reads as it is meant."""

from __future__ import annotations

import re
from typing import Any

import yaml

from flambeau.config.yaml import CORE, TAG


class _Dumper(yaml.SafeDumper):
    """Text that looks like something else is quoted; nothing is written as an alias."""

    # Our own resolvers and YAML 1.1's: a text that either would take for a number, a truth value or a date is
    # quoted, so that other tools read the file as we do.
    yaml_implicit_resolvers: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, data: str) -> yaml.ScalarNode:
        # PyYAML folds at these as if they were line feeds, and reads a space back.
        style = '"' if re.search("[\r\x85\u2028\u2029]", data) else None
        return self.represent_scalar(TAG + "str", data, style=style)


class _BlockDumper(_Dumper):
    """One key a line, lists of scalars on one line."""

    def represent_items(self, data: list[Any]) -> yaml.SequenceNode:
        node = self.represent_list(data)
        node.flow_style = not any(isinstance(item, dict | list) for item in data)
        return node


for _name, _pattern in CORE:
    _Dumper.add_implicit_resolver(TAG + _name, _pattern, None)
for _first, _resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items():
    for _tag, _regexp in _resolvers:
        _Dumper.add_implicit_resolver(_tag, _regexp, [_first])
_Dumper.add_representer(str, _Dumper.represent_text)
_BlockDumper.yaml_implicit_resolvers = _Dumper.yaml_implicit_resolvers
_BlockDumper.add_representer(str, _BlockDumper.represent_text)
_BlockDumper.add_representer(list, _BlockDumper.represent_items)


def write(values: Any) -> str:
    """A value as YAML text of several lines; `flambeau.config.yaml` reads the same value from it."""
    return yaml.dump(
        values, Dumper=_BlockDumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=100
    )


def write_inline(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=True, allow_unicode=True, width=10**9)
    return text.removesuffix("...\n").strip()
