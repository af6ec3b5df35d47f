"""Tell somebody how a run ended."""

from __future__ import annotations

import os
import threading
import time
from typing import Annotated

from annotated_types import Gt

from flambeau.callbacks.notices import Mail, Webhook
from flambeau.errors import UsageError
from flambeau.registry import register
from flambeau.run_folder.status import this_host
from flambeau.training.callback import Callback, Outcome
from flambeau.training.trainer import Trainer

HURRY = 3.0
"""Seconds at most after a failure of several processes: their launcher ends who does not leave."""

EVENTS = ("finished", "failed", "preempted")


@register.callback("notify")
class Notify(Callback):
    """Send a mail or a message to a webhook when the run has ended: finished, failed or preempted.

    Only rank 0 does so, after everything is saved, in a thread that is waited for `timeout` seconds at most. A message
    that cannot be sent is a warning, never a failure. An interruption by hand (a second Ctrl-C) is not told.

    Secrets are named, not given: the password and the webhook's address come from environment variables, and are in
    no configuration, log, tracker or error.

    Args:
        webhook: where to post; see `Webhook`.
        mail: whom to write to, and by which server; see `Mail`.
        events: which ends are told: `finished`, `failed`, `preempted`.
        timeout: seconds that sending may take.

    Raises:
        UsageError: there is nowhere to send to, or an event is unknown.
    """

    def __init__(
        self,
        *,
        webhook: Webhook | None = None,
        mail: Mail | None = None,
        events: list[Outcome] | None = None,
        timeout: Annotated[float, Gt(0)] = 10.0,
    ) -> None:
        self.channels: list[Webhook | Mail] = [channel for channel in (webhook, mail) if channel is not None]
        self.events = EVENTS if events is None else tuple(events)
        self.timeout = timeout
        self._error: BaseException | None = None
        self._ready = False
        if not self.channels:
            raise UsageError("callback notify: there is nowhere to send to", remedy="give webhook, mail or both")
        if unknown := [event for event in self.events if event not in EVENTS]:
            raise UsageError(
                f"callback notify: no event is called {unknown[0]!r}", remedy=f"one of {', '.join(EVENTS)}"
            )

    def on_fit_start(self, trainer: Trainer) -> None:
        """Not earlier: to evaluate a run needs nobody's password."""
        self._error, self._ready = None, False
        if trainer.world.is_main:
            for channel in self.channels:
                channel.check()
        self._ready = True

    def on_error(self, trainer: Trainer, error: BaseException) -> None:
        self._error = error

    def on_exit(self, trainer: Trainer, outcome: Outcome) -> None:
        if not self._ready or not trainer.world.is_main or outcome not in self.events:
            return
        if isinstance(self._error, KeyboardInterrupt):
            return
        self._ready = False  # of two threads that see the end of a failing process, one tells
        subject, lines = self.message(trainer, outcome)
        timeout = min(self.timeout, HURRY) if outcome == "failed" and trainer.world.size > 1 else self.timeout
        failures: dict[str, str] = {}
        threads = [
            threading.Thread(target=_send, args=(channel, subject, lines, timeout, failures), daemon=True)
            for channel in self.channels
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + timeout
        for thread, channel in zip(threads, self.channels, strict=True):
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                failures[channel.name] = f"no answer within {timeout:g} s"
        for name, failure in sorted(failures.items()):
            trainer.recorder.warn(f"no notification by {name}: {failure}")

    def message(self, trainer: Trainer, outcome: Outcome) -> tuple[str, list[str]]:
        """Subject and lines of what is sent: state, step, best score, error, and how to go on."""
        state, folder = trainer.state, trainer.run_folder
        name = folder.status.config if folder is not None else type(trainer.model).__name__
        lines = [f"step {state.step} of {trainer.total_steps}, on {this_host()}"]
        if state.best_step is not None:
            lines.append(f"best: {trainer.monitor} {state.best_score:.6g} at step {state.best_step}")
        if outcome == "preempted":
            lines.append(f"reason: {trainer.preemption}")
        elif outcome == "finished" and trainer.stop_reason:
            lines.append(f"ended early: {trainer.stop_reason}")
        if outcome == "failed":
            told = folder.status.error if folder is not None else None
            lines.append(f"error: {told or self._told()}")
        if folder is not None:
            lines.append(f"run: {folder.path}")
        return f"flambeau: {name or 'a run'} {outcome}", [self._without_secrets(line) for line in lines]

    def _told(self) -> str:
        return f"{type(self._error).__name__}: {self._error}".split("\n")[0] if self._error is not None else "unknown"

    def _without_secrets(self, line: str) -> str:
        """An error of the user's own code may hold anything, these too."""
        for channel in self.channels:
            variable = channel.url_env if isinstance(channel, Webhook) else channel.password_env
            if variable is not None and (value := os.environ.get(variable)):
                line = line.replace(value, "***")
        return line


def _send(channel: Webhook | Mail, subject: str, lines: list[str], timeout: float, failures: dict[str, str]) -> None:
    try:
        channel.send(subject, lines, timeout)
    except Exception as error:  # an OSError as a rule; whatever it is, a run does not fail because of a message
        failures[channel.name] = str(error) if type(error) is OSError else type(error).__name__
