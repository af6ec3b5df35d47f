"""Where scores, images and texts of a run go besides `metrics.jsonl`."""

from flambeau.tracking.base import Tracker, TrackerFactory

__all__ = ["Tracker", "TrackerFactory"]
