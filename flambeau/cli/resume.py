"""Go on with a run from its newest whole checkpoint, to the same bits as if it had never stopped.

flambeau resume runs/lenet/2026-01-31_12-00-00-3f2a
flambeau resume RUN trainer.epochs=40
flambeau resume RUN -d 0,1
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from flambeau.cli.settings import add_bindings, overrides_of
from flambeau.config.difference import check_changes, differences
from flambeau.errors import RunFolderError
from flambeau.launch import add_device, add_machines, add_processes, launch, plan_of
from flambeau.launch.environment import LAUNCHER
from flambeau.launch.ranks import kept_output
from flambeau.run_folder import RunFolder
from flambeau.run_folder.saved_config import load_saved_config

HELP = "go on with a run from its newest whole checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings to change")
    add_bindings(parser)
    add_device(parser)
    add_processes(parser)
    add_machines(parser)
    parser.add_argument(
        "--force",
        action="store_true",
        help="go on even if a changed setting, or other data, make the run another one than it was",
    )


def run(args: argparse.Namespace) -> int:
    plan = plan_of(args)
    folder = RunFolder.open(args.run)
    if not folder.config_file.exists():
        raise RunFolderError(
            f"{folder.path} holds no configuration: the run ended before it began, or was started from Python",
            remedy="start it anew with flambeau train, or call Trainer.fit(resume=True) where it was made",
        )
    before, overrides = load_saved_config(folder), overrides_of(args)
    config = load_saved_config(folder, overrides) if overrides else before
    changes = differences(before, config)
    if LAUNCHER not in os.environ:  # which has shown them
        for change in changes:
            print(f"changed: {change}", flush=True)
    check_changes(changes, force=args.force)
    if plan.needs_launcher:
        return launch(plan, args.arguments)

    with kept_output():
        from flambeau.training.run import resume_run

        return resume_run(
            config,
            folder,
            changed=bool(changes),
            device=args.device,
            force=args.force,
            command=["flambeau", *sys.argv[1:]],
        )
