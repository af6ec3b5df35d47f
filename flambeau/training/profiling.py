"""A profiler trace of a few steps, in the run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flambeau.config.sections import ProfileSettings
from flambeau.run_folder import RunFolder


@contextmanager
def profiler(settings: ProfileSettings | None, folder: RunFolder | None) -> Iterator[Callable[[], None]]:
    """Gives what is to be called after each step; writes `profile/trace.json` (open it in Perfetto)."""
    if settings is None or folder is None:
        yield _nothing
        return
    import torch.profiler as torch_profiler

    target = folder.path / "profile"
    target.mkdir(exist_ok=True)

    def write(recorded: torch_profiler.profile) -> None:
        recorded.export_chrome_trace(str(target / "trace.json"))
        table = recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=30)
        (target / "operators.txt").write_text(table)

    schedule = torch_profiler.schedule(
        skip_first=settings.start_step, wait=0, warmup=1, active=settings.steps, repeat=1
    )
    with torch_profiler.profile(schedule=schedule, on_trace_ready=write) as recording:
        yield recording.step


def _nothing() -> None:
    pass
