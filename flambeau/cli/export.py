"""Write the weights of a run into one file for other programs.

  flambeau export RUN --format safetensors --output model.safetensors
  flambeau export RUN --format safetensors --output model.safetensors --checkpoint last

Names and shapes are the model's own, on however many devices it was trained. Where the average of the weights
decides what is best (trainer.monitor: val/ema/...), the average is written.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flambeau.checkpoint import Checkpoint
    from flambeau.run_folder import RunFolder

HELP = "write a trained model's weights into one file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    parser.add_argument("--format", required=True, choices=("safetensors",), help="what to write")
    parser.add_argument("--output", required=True, type=Path, help="the file to write")
    parser.add_argument("--checkpoint", default="best", help="best, last or a step; default: best")
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")


def run(args: argparse.Namespace) -> int:
    from flambeau.errors import EXIT_DONE, UsageError
    from flambeau.run_folder import RunFolder
    from flambeau.run_folder.saved_config import load_saved_config

    folder = RunFolder.open(args.run)
    if args.output.exists() and not args.force:
        raise UsageError(f"--output: {args.output} is there already", remedy="choose another name, or --force")
    if not args.output.parent.is_dir():
        raise UsageError(f"--output: the folder {args.output.parent} does not exist")
    monitor = load_saved_config(folder).section("trainer").get("monitor") or ""
    checkpoint = _checkpoint(folder, args.checkpoint)

    from flambeau.checkpoint.export import export_safetensors
    from flambeau.console import say

    part = "ema" if monitor.removeprefix("val/").startswith("ema/") else "model"
    size = export_safetensors(checkpoint, part, args.output)
    average = ", the average of the weights" if part == "ema" else ""
    say(f"step {checkpoint.step}{average}: {size / 1e6:,.1f} MB -> {args.output}")
    return EXIT_DONE


def _checkpoint(folder: RunFolder, which: str) -> Checkpoint:
    """A verified checkpoint of a run. What is best was judged when it was saved: the link says it, or the status."""
    from flambeau.checkpoint import CheckpointStore
    from flambeau.config.sections import CheckpointSettings
    from flambeau.console import say
    from flambeau.errors import CheckpointError, UsageError

    store = CheckpointStore(folder.checkpoints, settings=CheckpointSettings(), warn=say)
    if which.isdigit():
        return store.at(int(which))
    if which not in ("best", "last"):
        raise UsageError(f"--checkpoint: '{which}' is none", remedy="use best, last or a step")
    if which == "best":
        link = folder.checkpoints / "best"
        best = folder.status.best
        if link.is_symlink():
            return store.at(int(link.readlink().name.removeprefix("step-")))
        if best is not None and best["step"] in store.steps():
            return store.at(best["step"])
    newest = store.newest()
    if newest is None:
        raise CheckpointError(f"{folder.path} has no whole checkpoint")
    return newest
