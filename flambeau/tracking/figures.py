"""Figures of matplotlib for trackers, without ever importing it: whoever gives a figure has it loaded."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray


def draw_figure(figure: Any) -> NDArray[np.uint8]:
    """A figure as an image of shape (4, H, W), uint8, at the figure's own size and resolution.

    The figure keeps the canvas that it has, a window's say.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    before = figure.canvas
    canvas: Any = FigureCanvasAgg(figure)
    try:
        canvas.draw()
        return np.array(canvas.buffer_rgba(), dtype=np.uint8).transpose(2, 0, 1)
    finally:
        figure.set_canvas(before)


def close_figure(figure: Any) -> None:
    """Let pyplot forget a figure; it holds every one that it has made until it is told to."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None and type(figure).__module__.startswith("matplotlib."):
        pyplot.close(figure)
