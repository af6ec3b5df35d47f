"""Train a configuration.

flambeau train lenet
flambeau train lenet optimizer.lr=3e-4 trainer.epochs=20 -d 0
flambeau train configs/mine.yaml --run-dir runs/mine
flambeau train lenet -d 0,1
flambeau train lenet -d cpu --processes 4
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flambeau.cli.settings import add_bindings, overrides_of
from flambeau.config import load_config
from flambeau.errors import UsageError
from flambeau.launch import add_device, add_machines, add_processes, launch, plan_of
from flambeau.launch.ranks import kept_output

HELP = "train a configuration"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a name in configs/, or a path to a YAML file; A+B for both")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings to change: optimizer.lr=3e-4")
    add_bindings(parser)
    add_device(parser)
    add_processes(parser)
    parser.add_argument("--run-dir", type=Path, help="the run's folder; default: runs/<config>/<time>-<id>")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="with --run-dir: go on if a run has begun there; nothing is left to do if it is finished",
    )
    add_machines(parser)


def run(args: argparse.Namespace) -> int:
    if args.resume and args.run_dir is None:
        raise UsageError("--resume needs the run's folder", remedy="--run-dir DIR")
    plan = plan_of(args)
    config = load_config(args.config, overrides_of(args))
    if plan.needs_launcher:
        return launch(plan, args.arguments)

    with kept_output():
        # Torch is imported only now, when the configuration is known to be right.
        from flambeau.training.run import start_run

        command = ["flambeau", *sys.argv[1:]]
        return start_run(config, device=args.device, run_dir=args.run_dir, command=command, resume=args.resume)
