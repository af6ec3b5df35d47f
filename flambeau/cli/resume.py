"""Go on with a run from its newest whole checkpoint, to the same bits as if it had never stopped.

flambeau resume runs/lenet/2026-01-31_12-00-00-3f2a
flambeau resume RUN trainer.epochs=40
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flambeau.config.difference import differences
from flambeau.errors import RunFolderError, UsageError
from flambeau.run_folder import RunFolder
from flambeau.run_folder.saved_config import load_saved_config

HELP = "go on with a run from its newest whole checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings to change")
    parser.add_argument("-d", "--device", default="auto", help="cpu, auto, a number (0), or a name (cuda:0)")
    parser.add_argument(
        "--force",
        action="store_true",
        help="go on even if a changed setting makes the run another one than it was",
    )


def run(args: argparse.Namespace) -> int:
    folder = RunFolder.open(args.run)
    if not folder.config_file.exists():
        raise RunFolderError(
            f"{folder.path} holds no configuration: the run ended before it began, or was started from Python",
            remedy="start it anew with flambeau train, or call Trainer.fit(resume=True) where it was made",
        )
    before = load_saved_config(folder)
    config = load_saved_config(folder, args.overrides) if args.overrides else before
    changes = differences(before, config)
    for change in changes:
        print(f"changed: {change}")
    breaking = [change for change in changes if change.breaks_equality]
    if breaking and not args.force:
        raise UsageError(
            f"{', '.join(change.key for change in breaking)}: with this the run is no longer the one that began",
            remedy="--force goes on all the same; a new run (flambeau train) keeps the two apart",
        )

    from flambeau.training.run import resume_run

    return resume_run(
        config,
        folder,
        changed=bool(changes),
        device=args.device,
        force=args.force,
        command=["flambeau", *sys.argv[1:]],
    )
