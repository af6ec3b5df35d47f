"""What the processes of one run do together besides gradients: decide, watch each other, and end together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch

from flambeau.distributed.drift import ReplicaCheck
from flambeau.launch.worker import end_from_thread
from flambeau.runtime.agreement import Agreement
from flambeau.runtime.pulse import Pulse
from flambeau.runtime.signals import StopSignals
from flambeau.runtime.watchdog import OtherRankError, Watchdog
from flambeau.runtime.world import World

if TYPE_CHECKING:
    from flambeau.training.trainer import Trainer


class Team:
    """One process's link to the others; every process makes one at the beginning of a run.

    Args:
        world: the processes, two or more.
        device: where this process computes.
        hang_timeout: seconds without progress after which the processes say where they are, and end.
        signal: gives the name of a signal to leave that this process has got.
        cut_off: called, with a line and a text that say why, before this process is ended from another thread.
    """

    def __init__(
        self,
        world: World,
        device: torch.device,
        hang_timeout: float,
        *,
        signal: Callable[[], str | None],
        cut_off: Callable[[str, str], None],
    ) -> None:
        self._world = world
        self._pulse = Pulse(world)
        self._agreement = Agreement(self._pulse, device)
        self._agreement.hear("preempt", signal)

        def on_end(why: str, text: str) -> bool:
            cut_off(why, text)
            return end_from_thread(why, text)

        self._watchdog = Watchdog(self._pulse, hang_timeout, on_end=on_end)
        self._check: ReplicaCheck | None = None

    @classmethod
    def of(cls, trainer: Trainer, signals: StopSignals) -> Team:
        """The team of a trainer's run."""

        def cut_off(why: str, text: str) -> None:
            trainer.recorder.cut_off(trainer.state, why, text)
            for hook in trainer.hooks.exit:
                hook(trainer, "failed")

        return cls(
            trainer.world,
            trainer.device,
            trainer.settings.hang_timeout,
            signal=lambda: signals.received,
            cut_off=cut_off,
        )

    def compare(self, copies: Mapping[str, torch.Tensor], every: int) -> None:
        """From now on compare tensors that have to be equal in all processes, after every so many steps."""
        self._check = ReplicaCheck(self._pulse, copies, every)

    def settle(self, step: int, asked: Mapping[str, str], *, meeting: bool) -> dict[str, str]:
        """What all processes do after `step`, the same in all of them.

        Args:
            asked: what this process wants, reasons by kind. It may become due some steps later.
            meeting: whether all processes wait for each other here in any case, so that it is due at once.

        Raises:
            DriftError: copies are no longer equal.
        """
        if self._check is not None:
            self._check.after_step(step)
        due = dict(self._agreement.due(step))
        if not meeting:
            for kind, reason in asked.items():
                self._agreement.request(kind, reason)
            return due
        for wishes in self._world.gather(dict(asked)):
            due = {**wishes, **due}
        return due

    def beat(self, position: str) -> None:
        """Say that there was progress."""
        self._watchdog.beat(position)

    def paused(self) -> AbstractContextManager[None]:
        """Expect no progress meanwhile."""
        return self._watchdog.paused()

    def finish(self, step: int) -> None:
        """Compare the copies once more, after the last step.

        Raises:
            DriftError: they are no longer equal.
        """
        if self._check is not None:
            self._check.finish(step)

    def failed(self, error: BaseException) -> OtherRankError | None:
        """Tell the others, which end; gives what to raise instead of an error that is only the echo of theirs."""
        return self._watchdog.failed(error)

    def close(self) -> None:
        self._watchdog.close()
        self._agreement.close()
        self._pulse.close()
