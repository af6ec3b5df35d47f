"""Measure a trained model: each sample of a split, once.

flambeau evaluate runs/lenet/2026-01-31_12-00-00-3f2a --split test
flambeau evaluate RUN --checkpoint last --json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from flambeau.console import say
from flambeau.errors import EXIT_DONE, UsageError
from flambeau.launch import add_device, add_processes, launch, plan_of
from flambeau.run_folder import RunFolder

HELP = "measure a trained model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    parser.add_argument("--split", choices=("train", "val", "test"), default="val", help="default: val")
    parser.add_argument("--checkpoint", default="best", help="best, last or a step; default: best")
    add_device(parser)
    add_processes(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    plan = plan_of(args)
    RunFolder.open(args.run)  # says what is wrong before torch is imported
    if plan.needs_launcher:
        return launch(plan, args.arguments)

    from flambeau.loading import load_run
    from flambeau.runtime.world import world_of_run
    from flambeau.training.run import device_of

    with world_of_run() as world:
        found = load_run(args.run)
        trainer = found.trainer(checkpoint=args.checkpoint, device=str(device_of(world, args.device)))
        data = {"train": trainer.train_data, "val": trainer.val_data, "test": trainer.test_data}[args.split]
        if data is None:
            raise UsageError(f"the data of {args.run} has no {args.split} split")
        step = found.checkpoint(args.checkpoint, mode=trainer.mode).step
        scores = trainer.evaluate(data)
        if world.is_main:
            samples = len(data) if hasattr(data, "__len__") else None
            _tell(args, {"run": str(args.run), "split": args.split, "step": step, "samples": samples, "scores": scores})
        world.barrier()  # rank 0 may hold what the others use to leave
    return EXIT_DONE


def _tell(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Keep the scores in the run's folder, and show them."""
    target = args.run / "evaluations" / f"{args.split}-step-{result['step']:08d}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n")
    if args.json:
        print(json.dumps(result))
        return
    counted = "" if result["samples"] is None else f"{result['samples']:,} samples, "
    say(f"{args.split}: {counted}checkpoint of step {result['step']}")
    for name, value in result["scores"].items():
        say(f"  {name:<20} {value:.6f}")
