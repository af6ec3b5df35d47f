"""Find a learning rate: train a few hundred steps with one that grows, and see where the loss falls (Smith, 2017).

flambeau find-lr lenet
flambeau find-lr lenet optimizer.name=sgd --from 1e-5 --to 100 --steps 300
flambeau find-lr configs/mine.yaml -d 0 --output lr-mine --json

It writes curve.json and, where matplotlib is installed, curve.svg into a folder of its own, and changes no run.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flambeau.config import Config, load_config
from flambeau.console import say, sparkline
from flambeau.errors import EXIT_DONE, MissingExtraError, UsageError

if TYPE_CHECKING:
    from flambeau.optim.lr_curve import LrCurve

HELP = "find a learning rate by a sweep over many"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a name in configs/, or a path to a YAML file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings to change: data.batch_size=128")
    parser.add_argument("-d", "--device", default="auto", help="one device: auto, cpu, 0, cuda:1; default: auto")
    parser.add_argument("--from", dest="first", type=float, default=1e-6, metavar="LR", help="default: 1e-6")
    parser.add_argument("--to", dest="last", type=float, default=10.0, metavar="LR", help="default: 10")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of the sweep; default: 200")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: runs/find-lr/<config>-<time>-<id>")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    if not 0 < args.first < args.last:
        raise UsageError(f"--from {args.first:g} --to {args.last:g}: a sweep goes up from a rate above 0")
    if args.steps < 20:
        raise UsageError(f"--steps {args.steps}: a curve needs 20 steps at least")
    overrides = [*args.overrides, "trainer.progress=false"] if args.json else args.overrides
    config = load_config(args.config, overrides)
    folder = args.output or _new_folder(config)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty", remedy="name another folder: --output DIR")

    # Torch is imported only now, when the configuration is known to be right.
    from flambeau.training.lr_finder import find_learning_rate

    with redirect_stdout(sys.stderr) if args.json else nullcontext():  # what a run says besides is no JSON
        curve = find_learning_rate(config, device=args.device, first=args.first, last=args.last, steps=args.steps)
    result = _result(config, curve)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "curve.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    undrawn = _draw(curve, folder, config.name)
    if args.json:
        print(json.dumps(result, allow_nan=False))
    else:
        _tell(args, result, curve, folder, undrawn)
    return EXIT_DONE


def _new_folder(config: Config) -> Path:
    base: Path = config.project.root / config.values.get("runs_dir", "runs") / "find-lr"
    return base / f"{config.name}-{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(2)}"


def _result(config: Config, curve: LrCurve) -> dict[str, Any]:
    """What is found, for programs; `lr` is what `optimizer.lr` is to be."""
    from flambeau.config.scaling import reference_rate

    suggestions = {"valley": curve.valley, "steepest": curve.steepest, "lowest": curve.lowest}
    return {
        "config": config.name,
        "lr": reference_rate(config, curve.valley) if curve.valley is not None else None,
        "suggestions": suggestions,
        "diverged": curve.diverged,
        "rates": list(curve.rates),
        "losses": [loss if abs(loss) < float("inf") else None for loss in curve.losses],
    }


def _draw(curve: LrCurve, folder: Path, title: str) -> str | None:
    """Draw the curve; says why not where it cannot be."""
    from flambeau.training.lr_drawing import draw_curve

    try:
        draw_curve(curve, folder / "curve.svg", title=title)
    except MissingExtraError as error:
        return f"no image is drawn: {error.message}; {error.remedy}"
    return None


def _tell(args: argparse.Namespace, result: dict[str, Any], curve: LrCurve, folder: Path, undrawn: str | None) -> None:
    steps = len(curve.rates)
    end = f"the loss ran away after {steps} of {args.steps} steps" if curve.diverged else f"{steps} steps"
    say(f"sweep  rates from {curve.rates[0]:.2g} to {curve.rates[-1]:.2g}; {end}")
    ceiling = max(curve.smoothed[: max(steps // 2, 1)])
    say(f"loss   {sparkline([min(loss, ceiling) for loss in curve.smoothed])}")
    if result["lr"] is None:
        say("the loss falls nowhere for long: no rate is suggested")
    else:
        marks = [f"{name} {rate:.2g}" for name, rate in result["suggestions"].items() if rate is not None]
        say(f"found  {', '.join(marks)}")
        command = " ".join(["flambeau train", args.config, *args.overrides, f"optimizer.lr={result['lr']:.2g}"])
        say(f"  next   {command}")
    say(f"  curve  {folder}")
    if undrawn is not None:
        say(f"  ({undrawn})")
