"""Checkpoints: whole or absent, verified, readable without running code, written in the background."""

from flambeau.checkpoint.reading import Checkpoint
from flambeau.checkpoint.store import CheckpointStore

__all__ = ["Checkpoint", "CheckpointStore"]
