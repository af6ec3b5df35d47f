"""Which keys hold secrets: they come from the environment and are written nowhere."""

from __future__ import annotations

import re

_WORDS = frozenset(
    "token password passwd passphrase pwd secret secrets credential credentials apikey".split()  # noqa: SIM905
)
_KEYS = frozenset("api access private secret auth".split())  # noqa: SIM905  # what stands before `_key`
_VOCABULARY = frozenset(  # what stands before a `_token` of a tokenizer or a model
    "pad mask cls bos eos unk sep class special image text start begin end stop null blank register".split()  # noqa: SIM905
)


def is_secret(key: str) -> bool:
    """Whether a dotted key names a secret, by its last word.

    >>> [is_secret(key) for key in ("tracking.wandb.api_key", "hf_token", "model.pad_token", "num_tokens")]
    [True, True, False, False]
    """
    words = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key.rpartition(".")[2]).lower())
    before = words[-2] if len(words) > 1 else ""
    if words[-1] == "token":
        return before not in _VOCABULARY
    return words[-1] in _WORDS or (words[-1] == "key" and before in _KEYS)


def is_secret_reference(text: str) -> bool:
    """Whether a value as it is written refers to an entry that names a secret: `${vars.api_key}`."""
    return any(is_secret(name) for name in re.findall(r"\$\{([^}:]+)\}", text))
