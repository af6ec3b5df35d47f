"""Train a configuration.

flambeau train lenet
flambeau train lenet optimizer.lr=3e-4 trainer.epochs=20 -d 0
flambeau train configs/mine.yaml --run-dir runs/mine
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flambeau.config import load_config

HELP = "train a configuration"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a name in configs/, or a path to a YAML file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings to change: optimizer.lr=3e-4")
    parser.add_argument("-d", "--device", default="auto", help="cpu, auto, a number (0), or a name (cuda:0)")
    parser.add_argument("--run-dir", type=Path, help="the run's folder; default: runs/<config>/<time>-<id>")


def run(args: argparse.Namespace) -> int:
    config = load_config(args.config, args.overrides)

    # Torch is imported only now, when the configuration is known to be right.
    from flambeau.training.run import start_run

    return start_run(config, device=args.device, run_dir=args.run_dir, command=["flambeau", *sys.argv[1:]])
