"""Copies of a model that have ceased to be equal are found, and named: tensor, process, step.

A gradient exchange that leaves one process out, a hook that changes a weight on rank 0 only, or a faulty memory cell
let the copies drift apart, and nothing else would tell: the loss stays plausible, and rank 0's copy is saved.

Every so many steps each process computes a checksum of every tensor, where the tensor lies, and goes on at once. The
pulse's thread compares them through the board: the first process leaves a hash of its checksums there, the others
look whether theirs is the same. Only if it is not are all checksums laid out, to see which tensors and whose.

A copy of the optimizer's state that drifts shows in the weights one step later, so it is not looked at.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flambeau.errors import FlambeauError
from flambeau.runtime.pulse import Pulse
from flambeau.runtime.stacks import name_ranks

CHUNK = 2**17
"""Words that are multiplied at a time on a CPU: their products stay in its cache."""

LARGE_CHUNK = 2**22
"""Words that are multiplied at a time on an accelerator, where each operation has to be started."""

KEPT = 64
"""Comparisons of which the checksums are kept, for when a difference is found. More in one period of the pulse are not
all made."""

PATIENCE = 10.0
"""Seconds in which all processes lay out their checksums after a difference was found."""

NAMED = 4
"""Tensors that a message names."""

REMEDY = (
    "something changes the model in some processes only: code under `if rank == 0:`, an update that exchanges no "
    "gradients, faulty hardware; checkpoints since the comparison before are not to be trusted"
)

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32, 16: torch.int32}
"""What the bits of an element of so many bytes are read as."""


class DriftError(FlambeauError):
    """The copies of the model in the processes are no longer equal."""


@dataclass
class Comparison:
    """The checksums of one step."""

    step: int
    sums: torch.Tensor
    """On the host, once `ready`."""
    copied: Any
    """The event after which they are there; None: at once."""
    compared: bool = False

    @property
    def ready(self) -> bool:
        return self.copied is None or self.copied.query()


class ReplicaCheck:
    """Compares tensors that have to be equal in all processes, bit by bit, every so many steps.

    Every process makes one, at the same place of the program. With one process it does nothing.

    Args:
        pulse: of this process.
        tensors: by name; the same names, shapes and types in all processes. Statistics of batch norm may differ
            where they are not synchronised: leave them out then.
        every: optimizer steps between two comparisons; None compares only when asked to.
    """

    def __init__(self, pulse: Pulse, tensors: Mapping[str, torch.Tensor], every: int | None) -> None:
        self._pulse = pulse
        self._tensors = dict(tensors)
        self._every = every if pulse.world.size > 1 else None
        self._error: DriftError | None = None
        self._comparisons: deque[Comparison] = deque(maxlen=KEPT)
        self._laid_out = False
        self._deadline: float | None = None
        self._work: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}
        if pulse.world.size > 1:
            self._board = pulse.section("drift")
            pulse.listen(self._look)

    def after_step(self, step: int) -> None:
        """Compare, if it is time to; what is found is raised here some steps later.

        Raises:
            DriftError: names the tensors, the processes and the step.
        """
        if self._every is not None and step % self._every == 0:
            self._comparisons.append(self._take(step))
        if self._error is not None:
            raise self._error

    def finish(self, step: int) -> None:
        """Compare now and wait for what comes of it: all processes call this, after the last step.

        Raises:
            DriftError: names the tensors and the processes.
        """
        self.close()
        if self._pulse.world.size == 1:
            return
        last = self._take(step)
        if last.copied is not None:
            last.copied.synchronize()
        if len(set(self._pulse.world.gather(_hash(last.sums)))) > 1:
            sums = self._pulse.world.gather(last.sums.tolist())
            raise DriftError(self._describe(step, dict(enumerate(sums))), remedy=REMEDY)
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Compare no more."""
        self._pulse.leave(self._look)

    # ---------------------------------------------------------------- checksums

    def _take(self, step: int) -> Comparison:
        """Begin to compute the checksums of the tensors as they are now."""
        with torch.no_grad():
            sums = [self._checksum(tensor.detach()) for tensor in self._tensors.values()]
            device = next((one.device for one in sums if one.device.type != "cpu"), torch.device("cpu"))
            together = torch.cat([one.to(device, non_blocking=True) for one in sums] or [torch.zeros(0)])
            if device.type != "cuda":
                return Comparison(step, together.cpu(), None)
            host = torch.empty(together.shape, dtype=together.dtype, pin_memory=True)
            host.copy_(together, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(torch.cuda.current_stream(device))
            return Comparison(step, host, copied)

    def _checksum(self, tensor: torch.Tensor) -> torch.Tensor:
        """A number (int64) for each chunk of words: the sum of the words times odd numbers that depend on the place.

        Multiplying by an odd number loses no bit of a word, so a change of a single word always shows; that of
        several, and words in another order, but for one chance in billions.
        """
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor)
        words = tensor.flatten().view(WORDS[tensor.element_size()])
        size = _chunk(words.device)
        factors, products = self._work_space(words.device, min(size, words.numel()))
        sums = torch.empty(-(-words.numel() // size), dtype=torch.int64, device=words.device)
        for place in range(len(sums)):
            chunk = words[place * size : (place + 1) * size]
            length = len(chunk)
            torch.mul(chunk, factors[:length], out=products[:length])
            if length % 2:
                products[length] = 0
                length += 1
            # Added up two at a time, as numbers of 64 bits: no product loses a bit, and none has to be converted.
            torch.sum(products[:length].view(torch.int64), dim=0, out=sums[place])
        return sums

    def _work_space(self, device: torch.device, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Odd factors and room for products, kept between comparisons."""
        if device not in self._work or len(self._work[device][0]) < length:
            generator = torch.Generator().manual_seed(0)  # a longer row of factors begins like a shorter one
            factors = torch.randint(-(2**30), 2**30, (length,), generator=generator, dtype=torch.int32) * 2 + 1
            products = torch.empty(length + length % 2, dtype=torch.int32, device=device)
            self._work[device] = factors.to(device), products
        return self._work[device]

    # ---------------------------------------------------------------- in the pulse's thread

    def _look(self) -> None:
        for comparison in tuple(self._comparisons):
            if not comparison.compared and comparison.ready:
                comparison.compared = True
                mine = _hash(comparison.sums)
                if self._board.claim(f"hash/{comparison.step}", mine) != mine:
                    self._board.claim("different", str(comparison.step))
        if self._error is None and (step := self._board.read("different")) is not None:
            self._explain(int(step))

    def _explain(self, step: int) -> None:
        """A difference was found: lay out this process's checksums; rank 0 looks at all of them."""
        for comparison in tuple(self._comparisons):
            if not self._laid_out and comparison.step == step and comparison.compared:
                self._laid_out = True
                self._board.post(f"sums/{self._pulse.world.rank}", json.dumps(comparison.sums.tolist()))
        if self._pulse.world.is_main and self._board.read("finding") is None:
            self._deadline = self._deadline or time.monotonic() + PATIENCE
            laid_out = {rank: self._board.read(f"sums/{rank}") for rank in range(self._pulse.world.size)}
            if None in laid_out.values() and time.monotonic() < self._deadline:
                return
            sums = {rank: json.loads(message) for rank, message in laid_out.items() if message is not None}
            self._board.post("finding", self._describe(step, sums))
        if (finding := self._board.read("finding")) is not None:
            self._error = DriftError(finding, remedy=REMEDY)

    # ---------------------------------------------------------------- words

    def _describe(self, step: int, sums: Mapping[int, Sequence[int]]) -> str:
        """Which tensors differ, and on which processes if most agree."""
        places: dict[str, list[str]] = {}
        begin = 0
        for name, tensor in self._tensors.items():
            words = tensor.numel() * tensor.element_size() // WORDS[tensor.element_size()].itemsize
            end = begin + -(-words // _chunk(tensor.device))
            odd = _odd_ones({rank: tuple(row[begin:end]) for rank, row in sums.items()})
            if odd is not None:
                places.setdefault(odd, []).append(name)
            begin = end
        found = []
        for odd, names in places.items():
            more = f" and {len(names) - NAMED} more tensors" if len(names) > NAMED else ""
            found.append(f"{', '.join(names[:NAMED])}{more} {odd}")
        return f"after step {step} the copies of the model are not equal: {'; '.join(found)}"


def _odd_ones(values: Mapping[int, Any]) -> str | None:
    """The ranks whose value is not that of most, in words; None if all have the same."""
    counts = Counter(values.values()).most_common()
    if len(counts) <= 1:
        return None
    most, count = counts[0]
    if 2 * count > len(values):
        return f"on {name_ranks([rank for rank, value in values.items() if value != most])}"
    groups = [[rank for rank, value in values.items() if value == one] for one, _ in counts]
    return f"between {' and '.join(name_ranks(ranks) for ranks in sorted(groups))}"


def _chunk(device: torch.device) -> int:
    return CHUNK if device.type == "cpu" else LARGE_CHUNK


def _hash(sums: torch.Tensor) -> str:
    return hashlib.blake2b(sums.numpy().tobytes(), digest_size=16).hexdigest()
