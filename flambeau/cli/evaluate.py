"""Measure a trained model: each sample of a split, once.

flambeau evaluate runs/lenet/2026-01-31_12-00-00-3f2a --split test
flambeau evaluate RUN --checkpoint last --json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "measure a trained model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    parser.add_argument("--split", choices=("train", "val", "test"), default="val", help="default: val")
    parser.add_argument("--checkpoint", default="best", help="best, last or a step; default: best")
    parser.add_argument("-d", "--device", default="auto", help="cpu, auto, a number (0), or a name (cuda:0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from flambeau.run_folder import RunFolder

    RunFolder.open(args.run)  # says what is wrong before torch is imported

    from flambeau.console import say
    from flambeau.errors import EXIT_DONE, UsageError
    from flambeau.loading import load_run

    found = load_run(args.run)
    trainer = found.trainer(checkpoint=args.checkpoint, device=args.device)
    data = {"train": trainer.train_data, "val": trainer.val_data, "test": trainer.test_data}[args.split]
    if data is None:
        raise UsageError(f"the data of {args.run} has no {args.split} split")
    step = found.checkpoint(args.checkpoint, mode=trainer.mode).step
    scores = trainer.evaluate(data)
    samples = len(data) if hasattr(data, "__len__") else None
    result = {"run": str(args.run), "split": args.split, "step": step, "samples": samples, "scores": scores}
    target = args.run / "evaluations" / f"{args.split}-step-{step:08d}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n")
    if args.json:
        print(json.dumps(result))
    else:
        counted = "" if samples is None else f"{samples:,} samples, "
        say(f"{args.split}: {counted}checkpoint of step {step}")
        for name, value in scores.items():
            say(f"  {name:<20} {value:.6f}")
    return EXIT_DONE
