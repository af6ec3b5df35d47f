"""What a text's tokens are: its bytes, or its characters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""Stands for characters that the vocabulary does not have."""


class Bytes:
    """The 256 bytes, a text being encoded in UTF-8: every text has tokens, and no token is unknown."""

    size = 256
    dtype: npt.DTypeLike = np.uint8
    token_bytes: tuple[int, ...] | None = None
    """Each token is one byte."""

    def encode(self, text: str) -> torch.Tensor:
        """Tokens (T,) of a text, int64."""
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long() if text else _none()

    def decode(self, tokens: torch.Tensor | Sequence[int]) -> str:
        """The text of tokens (T,); bytes that are no UTF-8 show as U+FFFD."""
        return bytes(torch.as_tensor(tokens).tolist()).decode(errors="replace")


class Characters:
    """The characters that a text has, in the order of their code points; token 0 stands for all others.

    Args:
        characters: those of the training part.
    """

    def __init__(self, characters: str) -> None:
        self.characters = UNKNOWN + "".join(sorted(set(characters) - {UNKNOWN}))
        self._codes = np.array([ord(character) for character in self.characters[1:]], dtype=np.uint32)

    @property
    def size(self) -> int:
        """Tokens, with the unknown one."""
        return len(self.characters)

    @property
    def dtype(self) -> npt.DTypeLike:
        """The smallest that holds the tokens, and that torch can index with."""
        return np.uint8 if self.size <= 1 << 8 else np.int16 if self.size <= 1 << 15 else np.int32

    @property
    def token_bytes(self) -> tuple[int, ...]:
        """Bytes of each character in UTF-8; an unknown one counts as U+FFFD, 3."""
        return tuple(len(character.encode()) for character in self.characters)

    def encode_array(self, text: str) -> npt.NDArray[np.int64]:
        """Tokens (T,) of a text."""
        codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
        places = np.minimum(np.searchsorted(self._codes, codes), max(len(self._codes) - 1, 0))
        known = self._codes[places] == codes if len(self._codes) else np.zeros(len(codes), dtype=bool)
        return np.where(known, places + 1, 0).astype(np.int64)

    def encode(self, text: str) -> torch.Tensor:
        """Tokens (T,) of a text, int64."""
        return torch.from_numpy(self.encode_array(text))

    def decode(self, tokens: torch.Tensor | Sequence[int]) -> str:
        """The text of tokens (T,)."""
        return "".join(self.characters[token] for token in torch.as_tensor(tokens).tolist())


Vocabulary = Bytes | Characters


def _none() -> torch.Tensor:
    return torch.empty(0, dtype=torch.int64)
