"""From a source's names to the model's: what wrappers have put before them, and the rules of `map` and `into`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile, and classes that hold a model put before its names."""
_INNER = re.compile(r"(?<=\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What wrappers of single modules put into them."""


class Renaming:
    """The rules by which names of a source become names of the model.

    Args:
        rules: beginnings (or, from `^` on, regular expressions) and what stands in their place; the first that fits
            a name is taken. They see a name as the source has it, and, if none fits, without its wrappers' prefixes.
        into: the module that the source's names are within.
        wrapper: what to take away at the beginning of names, where they have it.
    """

    def __init__(self, rules: Mapping[str, str | None], into: str | None = None, wrapper: str = "") -> None:
        self._rules = [(_pattern(pattern), pattern, replacement or "") for pattern, replacement in rules.items()]
        self._prefix = f"{into}." if into else ""
        self.wrapper = wrapper
        self.used: set[str] = set()
        """The rules that some name was renamed by."""

    def __call__(self, name: str) -> str:
        plain = _INNER.sub("", name.removeprefix(self.wrapper))
        for candidate in dict.fromkeys((name, plain)):
            for pattern, rule, replacement in self._rules:
                if pattern.match(candidate) if rule.startswith("^") else candidate.startswith(rule):
                    self.used.add(rule)
                    new = (
                        pattern.sub(replacement, candidate, count=1)
                        if rule.startswith("^")
                        else (replacement + candidate[len(rule) :])
                    )
                    return self._prefix + new
        return self._prefix + plain


def _pattern(rule: str) -> re.Pattern[str]:
    return re.compile(rule if rule.startswith("^") else re.escape(rule))


def find_renaming(
    names: Collection[str], known: Collection[str], rules: Mapping[str, str | None], into: str | None = None
) -> Renaming:
    """The renaming that gives the most of `names` a name of the model, with or without a wrapper's prefix.

    Args:
        names: of the source.
        known: of the model.
    """
    known = frozenset(known)
    best, most = Renaming(rules, into), -1
    for wrapper in _wrappers(names):
        renaming = Renaming(rules, into, wrapper)
        count = len({renaming(name) for name in names} & known)
        if count > most:
            best, most = Renaming(rules, into, wrapper), count
    return best


def _wrappers(names: Iterable[str]) -> list[str]:
    """The beginnings made of wrappers' prefixes that names have, shortest first: "", `module.`, `module._orig_mod.`."""
    found = {""}
    for name in names:
        prefix = ""
        while wrapper := next((own for own in WRAPPERS if name.startswith(prefix + own)), None):
            prefix += wrapper
            found.add(prefix)
    return sorted(found, key=lambda prefix: (prefix.count("."), prefix))
