"""Random numbers of a sample in a batch: a function of the run's seed, the epoch and the sample alone.

A generator's numbers depend on how many were drawn before, so on the batch, the process and the device. Here a number
is computed from its place (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): the output
function of SplitMix64 (Steele, Lea and Flood, 2014) of a key, the sample's id and the number's place. These are
operations on integers, so every device and every division of a batch gives the same bits; normal and beta numbers are
made of these with logarithms, which may differ in the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, pi, prod

import numpy as np
import numpy.typing as npt
import torch

from flambeau.runtime.seeds import derive

Ids = npt.NDArray[np.int64]

_GAMMA = 0x9E37_79B9_7F4A_7C15
_FIRST = 0xBF58_476D_1CE4_E5B9
_SECOND = 0x94D0_49BB_1331_11EB
_BITS = 24
"""Bits of a number: as many as a float32 in [0, 1) holds exactly."""


def uniform(
    key: int, ids: Ids, shape: Sequence[int], *, purpose: str = "", device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Numbers from [0, 1), float32 of shape (len(ids), *shape): row i is a function of `key`, `ids[i]` and `purpose`.

    They are multiples of 2**-24, the same on every device.
    """
    return (
        (_words(key, ids, prod(shape), purpose, device) >> (63 - _BITS))
        .to(torch.float32)
        .mul_(2.0**-_BITS)
        .reshape(len(ids), *shape)
    )


def normal(
    key: int, ids: Ids, shape: Sequence[int], *, purpose: str = "", device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Standard normal numbers, float32 of shape (len(ids), *shape); else as `uniform`.

    Box and Muller's method in float64, rounded at the end.
    """
    count = prod(shape)
    words = _words(key, ids, 2 * count, purpose, device).to(torch.float64).mul_(2.0**-63)
    first, second = words[:, :count], words[:, count:]
    radius = torch.sqrt(-2.0 * torch.log1p(-first))
    return (radius * torch.cos(2.0 * pi * second)).to(torch.float32).reshape(len(ids), *shape)


def beta(key: int, ids: Ids, alpha: float, *, purpose: str = "") -> torch.Tensor:
    """A number a sample from Beta(alpha, alpha), float64 of shape (len(ids),), on the host.

    The share X / (X + Y) of two gamma variables, in logarithms: X**(1 / alpha) would underflow for a small alpha.
    """
    first = _log_gamma(key, ids, alpha, f"{purpose}/first")
    second = _log_gamma(key, ids, alpha, f"{purpose}/second")
    return torch.sigmoid(first - second)


def _log_gamma(key: int, ids: Ids, alpha: float, purpose: str, tries: int = 16) -> torch.Tensor:
    """The logarithm of a variable from Gamma(alpha), by Marsaglia and Tsang's rejection (2000).

    For Gamma(alpha + 1), then times U**(1 / alpha). More than 95 % are accepted, so that all of 16 are rejected once
    in 1e20; the last is then taken as it is.
    """
    d = alpha + 1 - 1 / 3
    c = 1 / (9 * d) ** 0.5
    x = normal(key, ids, (tries,), purpose=f"{purpose}/normal").to(torch.float64)
    u = uniform(key, ids, (tries + 1,), purpose=f"{purpose}/uniform").to(torch.float64) + 2.0 ** -(_BITS + 1)
    v = (1 + c * x) ** 3
    log_v = torch.log(v.clamp_min(1e-300))
    accepted = (v > 0) & (torch.log(u[:, :tries]) < 0.5 * x * x + d - d * v + d * log_v)
    accepted[:, -1] = True
    chosen = accepted.to(torch.int8).argmax(dim=1, keepdim=True)  # the first
    return log_v.gather(1, chosen).squeeze(1) + log(d) + torch.log(u[:, tries]) / alpha


def _words(key: int, ids: Ids, count: int, purpose: str, device: torch.device | str) -> torch.Tensor:
    """Words of 63 random bits, int64 of shape (len(ids), count)."""
    starts: torch.Tensor = torch.from_numpy(np.ascontiguousarray(ids)).to(device)
    rows = _mixed(_mixed(starts * _signed(_GAMMA) + derive(key, purpose)))
    places = torch.arange(1, count + 1, device=device) * _signed(_GAMMA)
    return _shifted(_mixed(rows[:, None] + places), 1)


def _mixed(word: torch.Tensor) -> torch.Tensor:
    """SplitMix64's output function on int64, whose products wrap as those of unsigned words do."""
    word = (word ^ _shifted(word, 30)) * _signed(_FIRST)
    word = (word ^ _shifted(word, 27)) * _signed(_SECOND)
    return word ^ _shifted(word, 31)


def _shifted(word: torch.Tensor, bits: int) -> torch.Tensor:
    """A right shift that brings in zeros; torch's own brings in the sign."""
    return (word >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
