"""Where the numbers and words of a run go: its folder, its trackers, the terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import torch

from flambeau import console
from flambeau.run_folder import MetricsFile, RunFolder
from flambeau.tracking import Tracker
from flambeau.training.progress import REFRESH_SECONDS, Clock, ProgressBar
from flambeau.training.state import TrainState

logger = logging.getLogger("flambeau")


class Recorder:
    """Keeps the record of one run.

    `metrics.jsonl` holds only what is a function of the configuration, so that a resumed run writes the same bytes.
    What depends on the clock goes to `timing.jsonl`. Trackers get both. Without a run folder, records stay in
    `history`. A quiet recorder, of a process that is not rank 0, shows nothing.
    """

    def __init__(self, folder: RunFolder | None, monitor: str, *, progress: bool, quiet: bool = False) -> None:
        self.folder = folder
        self.monitor = monitor
        self.trackers: Sequence[Tracker] = ()
        self.history: list[dict[str, Any]] = []
        self.last_scores: dict[str, float] = {}
        self.quiet = quiet
        self.bar = ProgressBar(enabled=progress and not quiet)
        self._metrics = MetricsFile(folder.metrics_file) if folder else None
        self._timing = MetricsFile(folder.timing_file) if folder else None
        self._tick = Clock(REFRESH_SECONDS)
        self._log_handler = _write_log(folder) if folder else None
        self._shown_note = ""
        self._steps_per_epoch: int | None = None
        self._timed_step = 0
        self._timed_samples = 0
        self._timed_at = time.perf_counter()

    def open(
        self, state: TrainState, total_steps: int, steps_per_epoch: int | None, *, debug: str | None = None
    ) -> None:
        """Begin, or go on from `state`; `debug` is what shortens the run."""
        self._steps_per_epoch = steps_per_epoch
        self.status(state="running", **self._progress(state), total_steps=total_steps, error=None, debug=debug)
        self.bar.start(step=state.step, total=total_steps, steps_per_epoch=steps_per_epoch)
        self._restart_clock(state)

    def scalars(self, record: Mapping[str, float], step: int) -> None:
        """Write what is a function of the configuration alone."""
        entry = {"step": step, **record}
        self.history.append(entry)
        if self._metrics is not None:
            self._metrics.append(entry)
        for tracker in self.trackers:
            tracker.log_scalars(record, step)

    def timing(self, state: TrainState, device: torch.device) -> None:
        """Write the throughput since the last call, and the accelerator's peak memory."""
        seconds = max(time.perf_counter() - self._timed_at, 1e-9)
        record = {
            "samples_per_second": round((state.samples - self._timed_samples) / seconds, 2),
            "milliseconds_per_step": round(1e3 * seconds / max(state.step - self._timed_step, 1), 4),
        }
        if device.type == "cuda":
            record["peak_memory_bytes"] = torch.cuda.max_memory_allocated(device)
        self._restart_clock(state)
        if self._timing is not None:
            self._timing.append({"step": state.step, "time": _now(), **record})
        timed = {f"time/{name}": value for name, value in record.items()}
        for tracker in self.trackers:
            tracker.log_scalars(timed, state.step)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens meanwhile out of the throughput of training."""
        begun = time.perf_counter()
        yield
        self._timed_at += time.perf_counter() - begun

    def scores(self, state: TrainState, epoch: int, scores: Mapping[str, float], *, better: bool) -> None:
        """Show scores to the person at the terminal, and keep them as the last ones."""
        self.last_scores = dict(scores)
        place = f"epoch {epoch:>3}  step {state.step:>6}" if epoch else f"step {state.step:>6}"
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.say(f"{place}  {numbers}{'  best' if better else ''}")
        if better:
            self.status(best=self._best(state))

    def position(self) -> int:
        """Bytes of metrics.jsonl that are written; a checkpoint carries it."""
        return self._metrics.position() if self._metrics is not None else len(self.history)

    def rewind(self, position: int) -> None:
        """Forget what was recorded after a checkpoint."""
        if self._metrics is not None:
            self._metrics.truncate(position)
        else:
            del self.history[position:]

    def tick(self, state: TrainState) -> None:
        """Called every step; draws the bar and tells the run's status only now and then."""
        if self._tick.struck():
            self.bar.update(step=state.step, note=self._shown_note)
            self.status(**self._progress(state))

    def note(self, text: str) -> None:
        """What the progress bar shows beside it."""
        self._shown_note = text

    def status(self, **changes: Any) -> None:
        if self.folder is not None:
            self.folder.update_status(**changes)

    def say(self, text: str) -> None:
        """A line for the person at the terminal, kept in log.txt."""
        if not self.quiet:
            console.say(text)
        if self.folder is not None:
            logger.info(text)

    def warn(self, text: str) -> None:
        if not self.quiet:
            console.say(f"warning: {text}", error=True)
        if self.folder is not None:
            logger.warning(text)

    def end(self, state: TrainState, *, preemption: str | None, stop_reason: str | None) -> None:
        """Record how the run came out."""
        self.status(
            state="preempted" if preemption else "finished",
            **self._progress(state),
            best=self._best(state),
            next=f"flambeau resume {self.folder.path}" if preemption and self.folder else None,
        )
        self.bar.stop()
        if preemption:
            self.say(f"stopped by {preemption} after step {state.step}; everything is saved")
        elif stop_reason:
            self.say(f"stopped after step {state.step}: {stop_reason}")

    def fail(self, state: TrainState, error: BaseException) -> None:
        self.bar.stop()
        self.status(state="failed", **self._progress(state), error=f"{type(error).__name__}: {error}".split("\n")[0])
        if self.folder is not None:
            logger.error("the run failed at step %d", state.step, exc_info=error)

    def cut_off(self, state: TrainState, why: str, text: str) -> None:
        """Record that the process is being ended from outside its main thread."""
        self.status(state="failed", **self._progress(state), error=why)
        if self.folder is not None:
            logger.error("%s", text)

    def flush(self) -> None:
        for file in (self._metrics, self._timing):
            if file is not None:
                file.flush()

    def close(self) -> None:
        self.bar.stop()
        for file in (self._metrics, self._timing):
            if file is not None:
                file.close()
        for tracker in self.trackers:
            tracker.close()
        if self._log_handler is not None:
            logging.getLogger().removeHandler(self._log_handler)
            self._log_handler.close()
            self._log_handler = None

    def _progress(self, state: TrainState) -> dict[str, int]:
        """Steps and whole epochs done, as the status tells them."""
        return {"step": state.step, "epoch": state.step // self._steps_per_epoch if self._steps_per_epoch else 0}

    def _best(self, state: TrainState) -> dict[str, Any] | None:
        if state.best_step is None:
            return None
        return {"metric": self.monitor, "value": state.best_score, "step": state.best_step}

    def _restart_clock(self, state: TrainState) -> None:
        self._timed_step, self._timed_samples = state.step, state.samples
        self._timed_at = time.perf_counter()


def _write_log(folder: RunFolder) -> logging.Handler:
    handler = logging.FileHandler(folder.log_file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    logger.setLevel(logging.INFO)
    return handler


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
