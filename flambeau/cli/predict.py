"""Apply a trained model to data.

  flambeau predict RUN --input images.npy --output predictions.npz
  flambeau predict RUN --input test --output predictions.csv

The input is a split of the run's data (train, val, test) or a file: .npy (one array of inputs), .npz or .safetensors
(an entry `inputs`). Inputs go through the run's evaluation and batch transforms. The output is .npz (entry
`outputs`), .csv (a line a sample) or .jsonl.
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "apply a trained model to data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    parser.add_argument("--input", required=True, help="train, val, test, or a file (.npy, .npz, .safetensors)")
    parser.add_argument("--output", required=True, type=Path, help="a file (.npz, .csv, .jsonl)")
    parser.add_argument("--checkpoint", default="best", help="best, last or a step; default: best")
    parser.add_argument("-d", "--device", default="auto", help="cpu, auto, a number (0), or a name (cuda:0)")


def run(args: argparse.Namespace) -> int:
    from flambeau.errors import EXIT_DONE, UsageError
    from flambeau.run_folder import RunFolder

    if "," in args.device:
        raise UsageError(
            f"-d {args.device}: predict uses one device", remedy=f"use -d {args.device.split(',')[0] or 'auto'}"
        )
    RunFolder.open(args.run)
    if args.output.suffix not in (".npz", ".csv", ".jsonl"):
        raise UsageError(f"--output: '{args.output.suffix}' is no known format", remedy="use .npz, .csv or .jsonl")
    if not args.output.parent.is_dir():
        raise UsageError(f"--output: the folder {args.output.parent} does not exist")

    from flambeau.console import say
    from flambeau.loading import load_run
    from flambeau.training.prediction import predict, read_inputs, write_outputs

    trainer = load_run(args.run).trainer(checkpoint=args.checkpoint, device=args.device)
    splits = {"train": trainer.train_data, "val": trainer.val_data, "test": trainer.test_data}
    data = splits[args.input] if args.input in splits else read_inputs(Path(args.input))
    if data is None:
        raise UsageError(f"the data of {args.run} has no {args.input} split")
    outputs = predict(trainer, data)
    write_outputs(args.output, outputs)
    say(f"{len(next(iter(outputs.values()))):,} samples -> {args.output}")
    return EXIT_DONE
