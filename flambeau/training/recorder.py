"""Where the numbers and words of a run go: its folder, its trackers, the terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch

from flambeau import console
from flambeau.data import Batch
from flambeau.insight.timer import Totals, collected_by
from flambeau.run_folder import MetricsFile, RunFolder
from flambeau.tracking import Tracker
from flambeau.training.pace import DataWatch, Pace, Smoothed, between
from flambeau.training.progress import REFRESH_SECONDS, Clock, ProgressBar
from flambeau.training.state import TrainState

if TYPE_CHECKING:
    from flambeau.training.trainer import Trainer

logger = logging.getLogger("flambeau")


class Recorder:
    """Keeps the record of one run.

    `metrics.jsonl` holds only what is a function of the configuration, so that a resumed run writes the same bytes.
    What depends on the clock goes to `timing.jsonl`. Trackers get both. Without a run folder, records stay in
    `history`. A quiet recorder, of a process that is not rank 0, shows nothing.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        monitor: str,
        *,
        progress: bool,
        quiet: bool = False,
        workers: int = 0,
        debug: str | None = None,
    ) -> None:
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
        self._log_handler = write_log(folder) if folder else None
        self._shown_note = ""
        self._steps_per_epoch: int | None = None
        self._workers, self._debug = workers, debug
        self._pace, self._smoothed, self._data_watch = Pace(), Smoothed(), DataWatch()
        self._timed = self._ticked = self._pace.read(0, 0)
        self._seconds_of: dict[str, float] = {}
        self._timers, self._stack = Totals(), ExitStack()

    @classmethod
    def of(cls, trainer: Trainer, folder: RunFolder | None) -> Recorder:
        """The recorder of a trainer's run; `folder` is None in processes that write no record."""
        settings, quiet = trainer.settings, not trainer.world.is_main
        return cls(
            folder,
            trainer.monitor,
            progress=settings.progress,
            quiet=quiet,
            workers=trainer.loader.workers,
            debug=settings.debug,
        )

    def open(
        self, state: TrainState, total_steps: int, steps_per_epoch: int | None, planned_steps: int | None = None
    ) -> None:
        """Begin, or go on from `state`."""
        self._steps_per_epoch = steps_per_epoch
        lengths = {"total_steps": total_steps, "planned_steps": planned_steps if planned_steps != total_steps else None}
        self.status(state="running", **self._progress(state), **lengths, error=None, debug=self._debug)
        self.bar.start(step=state.step, total=total_steps, steps_per_epoch=steps_per_epoch)
        self._stack.enter_context(collected_by(self._timers))

    def timed(self, batches: Iterator[Batch], state: TrainState) -> Iterator[Batch]:
        """Begin to take the time, as the first step is about to; `batches`, whose waiting time is noted."""
        self._timed = self._ticked = self._pace.read(state.step, state.samples)
        self._timers.take()  # of the dry batch
        return self._pace.timed(batches)

    def scalars(self, record: Mapping[str, float], step: int) -> None:
        """Write what is a function of the configuration alone."""
        entry = {"step": step, **record}
        self.history.append(entry)
        if self._metrics is not None:
            self._metrics.append(entry)
        for tracker in self.trackers:
            tracker.log_scalars(record, step)

    def timing(self, state: TrainState, device: torch.device) -> None:
        """Write the throughput since the last call, where the time went, and the accelerator's peak memory."""
        now = self._pace.read(state.step, state.samples)
        span, self._timed = between(self._timed, now), now
        record = {
            "samples_per_second": round(span.samples_per_second, 2),
            "milliseconds_per_step": round(1e3 * span.seconds / max(span.steps, 1), 4),
            "data_seconds": round(span.data_seconds, 4),
            "step_seconds": round(max(span.seconds - span.data_seconds, 0.0), 4),
        }
        if device.type == "cuda":
            record["peak_memory_bytes"] = torch.cuda.max_memory_allocated(device)
        self._write_timing(state.step, record)
        if told := self._data_watch.judge(span, self._workers):
            self.warn(told)

    def _write_timing(self, step: int, record: dict[str, float]) -> None:
        record |= {f"{name}_seconds": round(seconds, 4) for name, seconds in self._seconds_of.items()}
        record |= {f"timer/{name}": round(seconds, 6) for name, seconds in self._timers.take().items()}
        self._seconds_of.clear()
        if self._timing is not None:
            self._timing.append({"step": step, "time": _now(), **record})
        timed = {f"time/{name}": value for name, value in record.items()}
        for tracker in self.trackers:
            tracker.log_scalars(timed, step)

    @contextmanager
    def paused(self, name: str | None = None) -> Iterator[None]:
        """Leave what happens meanwhile out of the throughput of training.

        Args:
            name: of what happens; its seconds are in the next record as `<name>_seconds`.
        """
        begun = time.perf_counter()
        yield
        seconds = time.perf_counter() - begun
        self._pace.leave_out(seconds)
        if name is not None:
            self._seconds_of[name] = self._seconds_of.get(name, 0.0) + seconds

    def scores(self, state: TrainState, epoch: int, scores: Mapping[str, float], *, better: bool) -> None:
        """Show scores to the person at the terminal, and keep them as the last ones."""
        self.last_scores = dict(scores)
        place = f"epoch {epoch:>3}  step {state.step:>6}" if epoch else f"step {state.step:>6}"
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.say(f"{place}  {numbers}{'  best' if better else ''}")
        self.bar.end_evaluation(note=numbers)
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
            if self.bar.is_drawn:
                now = self._pace.read(state.step, state.samples)
                self._smoothed.add(between(self._ticked, now))
                self._ticked = now
                self.bar.update(step=state.step, note=f"{self._shown_note}  {self._smoothed}")
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
        if self._seconds_of:  # of a validation after the last log
            self._write_timing(state.step, {})
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
        self._stack.close()
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


def write_log(folder: RunFolder) -> logging.Handler:
    """From now on what is logged goes to the log.txt of a run, until the handler is taken from the root logger."""
    handler = logging.FileHandler(folder.log_file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    logger.setLevel(logging.INFO)
    return handler


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
