"""What a user's code shows of a run: numbers for its record; images, texts and more for its trackers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flambeau.runtime.world import World
from flambeau.tracking.figures import close_figure
from flambeau.training.state import TrainState

if TYPE_CHECKING:
    from flambeau.training.recorder import Recorder
    from flambeau.training.running_means import RunningMeans


class Showing:
    """The part of a trainer that user code logs with, at the step that is being done or was the last.

    Images, figures, texts, tables, histograms and artifacts go to every tracker at once. In processes other than rank
    0, without trackers and in a dry batch nothing is done with them. What is dear to make can be given as a function
    without arguments, which is called only where its value is shown:

        trainer.log_figure("val/confusion", lambda: draw(matrix))
    """

    world: World
    state: TrainState
    recorder: Recorder
    train_means: RunningMeans
    rehearsing = False
    """Whether what happens now is a trial that will be undone."""
    _begun_step = 0

    @property
    def current_step(self) -> int:
        """The number of the step that is being done; between two steps, of the last."""
        return max(self.state.step, self._begun_step)

    @property
    def shows(self) -> bool:
        """Whether somebody looks: this process has trackers, and what happens is not a trial."""
        return bool(self.world.is_main and self.recorder.trackers and not self.rehearsing)

    def log_scalar(self, name: str, value: float | torch.Tensor, weight: float = 1.0) -> None:
        """Add a number to the training record, where its mean since the last record is written.

        It is the mean over all processes that log it, too. A tensor is not read before then: nothing waits for it.

        Args:
            name: as in the record: `train/perplexity`.
            weight: what the mean is weighted by: samples, if the value is a mean over some.
        """
        self.train_means.add(name, value, weight)

    def log_image(self, tag: str, image: Any) -> None:
        """Show an image (C, H, W) or several (N, C, H, W): see `flambeau.Tracker.log_image`."""
        self._show("log_image", image, lambda image: (tag, image, self.current_step))

    def log_text(self, tag: str, text: str | Callable[[], str]) -> None:
        """Show a text in Markdown."""
        self._show("log_text", text, lambda text: (tag, text, self.current_step))

    def log_figure(self, tag: str, figure: Any) -> None:
        """Show a figure of matplotlib, or what a function draws; it is closed afterwards, shown or not."""
        drawn: list[Any] = [] if _is_maker(figure) else [figure]

        def draw() -> Any:
            if not drawn:
                drawn.append(figure())
            return drawn[0]

        try:
            self._show("log_figure", draw, lambda figure: (tag, figure, self.current_step))
        finally:
            for made in drawn:
                close_figure(made)

    def log_table(self, tag: str, columns: Sequence[str], rows: Any) -> None:
        """Show a table: names of columns, and rows of plain values (or a function that gives them)."""
        self._show("log_table", rows, lambda rows: (tag, columns, rows, self.current_step))

    def log_histogram(self, tag: str, values: Any) -> None:
        """Show how the elements of a tensor or an array are distributed; waits for the tensor's device."""
        self._show("log_histogram", values, lambda values: (tag, values, self.current_step))

    def log_artifact(self, path: Path | str, name: str | None = None) -> None:
        """Keep a file or folder with the run at the trackers that can; `name` is by default the path's last part."""
        place = Path(path)
        self._show("log_artifact", place, lambda place: (place, name or place.name))

    def _show(self, method: str, value: Any, arguments: Callable[[Any], tuple[Any, ...]]) -> None:
        """Call a method of every tracker that has it."""
        if not self.shows:
            return
        if _is_maker(value):
            value = value()
        for tracker in self.recorder.trackers:
            if (log := getattr(tracker, method, None)) is not None:
                log(*arguments(value))


def _is_maker(value: Any) -> bool:
    return callable(value) and not isinstance(value, torch.Tensor)
