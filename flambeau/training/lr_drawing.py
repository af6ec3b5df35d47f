"""The curve of a sweep of learning rates as an image."""

from __future__ import annotations

from pathlib import Path

from flambeau.errors import MissingExtraError
from flambeau.optim.lr_curve import LrCurve


def draw_curve(curve: LrCurve, path: Path, *, title: str) -> None:
    """Draw the losses over the rates, with the suggestion, into an SVG or PNG file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot: no window system, and nothing global to close
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plots") from error
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    smoothed = curve.smoothed
    axes.plot(curve.rates, curve.losses, color="0.75", linewidth=0.8, label="loss of a batch")
    axes.plot(curve.rates, smoothed, color="C0", label="smoothed")
    for name, rate in (("valley", curve.valley), ("steepest", curve.steepest)):
        if rate is not None:
            axes.axvline(rate, color="C1" if name == "valley" else "C2", linestyle="--", label=f"{name}: {rate:.2g}")
    low, high = min(smoothed), max(smoothed[: max(len(smoothed) // 2, 1)])
    axes.set_ylim(low - 0.1 * (high - low or 1), high + 0.4 * (high - low or 1))
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", title=title.replace("$", r"\$"))
    axes.legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
