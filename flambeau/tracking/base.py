"""The interface of a tracker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Tracker:
    """Shows a run somewhere: in files, in a browser, at a service.

    A tracker of one's own registers a class (`@register.tracker("mine")`), takes `run_dir`, `resume_step`
    and whatever else its section of the configuration is to give, and overrides `log_scalars` and what else
    its service can show; the rest is left out. The engine makes trackers in the main process only and calls
    them at its logging interval, never in between.
    """

    def __init__(self, *, run_dir: Path, resume_step: int | None = None) -> None:
        """Begin or go on.

        Args:
            run_dir: the run folder; its path is the run's identity and stays the same over resumes.
            resume_step: None for a new run. Else the first step that will be logged again: what a
                process that is gone had logged for this and later steps is to be dropped.
        """
        self.run_dir = run_dir
        self.resume_step = resume_step

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers by name (`train/loss`) at an optimizer step: plain floats, perhaps not finite."""
        raise NotImplementedError(f"{type(self).__name__} does not define log_scalars")

    def log_text(self, tag: str, text: str, step: int) -> None:
        """Log a text, Markdown where the service shows it."""

    def log_image(self, tag: str, image: Any, step: int) -> None:
        """Log an image of shape (C, H, W) or several of shape (N, C, H, W), with 1 to 4 channels.

        A tensor or an array, floats in 0..1 or uint8. `flambeau.tracking.images` makes PNG of it.
        """

    def log_config(self, values: Mapping[str, Any]) -> None:
        """Log the configuration, nested plain data; once a start."""

    def close(self) -> None:
        """Write everything and let go. Called once, also when the run fails."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


TrackerFactory = Callable[[Path, "int | None"], Sequence[Tracker]]
"""Makes trackers for a run folder, from the step that a resumed run goes on from."""
