"""What a configuration takes from the data module (`${data.num_classes}`), kept to be known without the data."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flambeau.config.load import Config


def data_values(config: Config, filled: Config) -> dict[str, Any]:
    """What came from the data module, by dotted key, as far as JSON can say it.

    Args:
        filled: the same configuration with the values in place.
    """
    found: dict[str, Any] = {}
    for key in sorted(config.deferred):
        value = _at(filled.values, key.split("."))
        try:
            found[key] = json.loads(json.dumps(value))
        except (TypeError, ValueError):  # a tensor of class weights, say
            continue
    return found


def with_data_values(config: Config, values: Mapping[str, Any], section: str) -> Config | None:
    """A configuration with one section's deferred values in place; None if not all of them are known."""
    wanted = [key for key in config.deferred if key.partition(".")[0] == section]
    if not all(key in values for key in wanted):
        return None
    tree = copy.deepcopy(config.values)
    for key in wanted:
        *path, last = key.split(".")
        around = _at(tree, path)
        around[int(last) if isinstance(around, list) else last] = values[key]
    return replace(config, values=tree)


def _at(tree: Any, path: list[str]) -> Any:
    for word in path:
        tree = tree[int(word) if isinstance(tree, list) else word]
    return tree
