"""The settings that a command line changes."""

from __future__ import annotations

import argparse

from flambeau.config.bindings import split_bindings


def add_bindings(parser: argparse.ArgumentParser) -> None:
    """Declare `-b`, for settings in one text; `overrides` is the command's own."""
    parser.add_argument(
        "-b",
        "--bindings",
        action="append",
        default=[],
        metavar="SETTINGS",
        help="more settings, in one text: -b 'optimizer.lr=3e-4; trainer.epochs=20'; those beside it win",
    )


def overrides_of(args: argparse.Namespace) -> list[str]:
    """All settings of a command line, in the order in which they apply."""
    return [*(setting for text in args.bindings for setting in split_bindings(text)), *args.overrides]
