"""A profiler trace of a few steps, in the run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flambeau.run_folder import RunFolder

if TYPE_CHECKING:
    from flambeau.training.trainer import Trainer

ROWS = 30
"""Operators in the table."""


@contextmanager
def profiler(trainer: Trainer, folder: RunFolder | None) -> Iterator[Callable[[], None]]:
    """Gives what is to be called after each step.

    Writes `profile/trace.json` (open it in https://ui.perfetto.dev) and `profile/operators.txt`, a table of the
    operators that took most time; a process other than rank 0 writes `trace-rank-N.json` and `operators-rank-N.txt`.
    """
    settings, world = trainer.settings.profile, trainer.world
    if settings is None or folder is None:
        yield _nothing
        return
    import torch.profiler as torch_profiler

    target = folder.path / "profile"
    target.mkdir(exist_ok=True)
    mark = "" if world.is_main else f"-rank-{world.rank}"
    order = "self_cpu_time_total" if trainer.device.type == "cpu" else "self_device_time_total"
    written: list[int] = []

    def write(recorded: torch_profiler.profile) -> None:
        recorded.export_chrome_trace(str(target / f"trace{mark}.json"))
        table = recorded.key_averages().table(sort_by=order, row_limit=ROWS)
        (target / f"operators{mark}.txt").write_text(table)
        written.append(trainer.state.step)

    # The step before the first that is recorded warms the profiler up.
    schedule = torch_profiler.schedule(
        skip_first=max(settings.start_step - 2, 0), wait=0, warmup=1, active=settings.steps, repeat=1
    )
    with torch_profiler.profile(schedule=schedule, on_trace_ready=write) as recording:
        yield recording.step
    if not written:
        first = max(settings.start_step, 2)
        trainer.recorder.warn(f"no profile: the run ended before its step {first}, the first that trainer.profile asks")


def _nothing() -> None:
    pass
