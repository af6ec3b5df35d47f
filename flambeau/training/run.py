"""A run from its configuration to its end: folder, lock, record, training, last words."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from flambeau.config import Config
from flambeau.console import say
from flambeau.errors import EXIT_DONE, EXIT_PREEMPTED, RunFolderError, UsageError
from flambeau.run_folder import RunFolder
from flambeau.runtime.devices import describe_hardware
from flambeau.training.build import build_trainer
from flambeau.training.plan import describe_replanning
from flambeau.training.trainer import Trainer


def start_run(config: Config, *, device: str, run_dir: Path | None, command: Sequence[str]) -> int:
    """Train a configuration in a new run folder; returns the exit status."""
    trainer = build_trainer(config, device=device)
    runs_dir = config.project.root / config.values.get("runs_dir", "runs")
    folder = RunFolder.create(runs_dir, config.name, path=run_dir)
    with folder.lock():
        folder.write_start(config.to_yaml(), command, describe_hardware(trainer.device), project=config.project.root)
        return _fit(trainer, folder, resume=False)


def resume_run(
    config: Config, folder: RunFolder, *, changed: bool, device: str, force: bool, command: Sequence[str]
) -> int:
    """Go on with the run in `folder`; returns the exit status.

    Args:
        changed: the configuration is not the one that the run had.
        force: go on even if a longer run has another schedule than the one so far.
    """
    with folder.lock():
        status = folder.status
        trainer = build_trainer(config, device=device)
        if status.total_steps is not None and trainer.total_steps != status.total_steps:
            _explain_new_length(trainer, status.total_steps, status.step, force)
        elif status.state == "finished":
            raise RunFolderError(
                f"{_shown(folder.path)} is finished, at step {status.step}",
                remedy=f"to train longer: flambeau resume {_shown(folder.path)} trainer.epochs=N",
            )
        folder.write_resume(
            command,
            describe_hardware(trainer.device),
            config_yaml=config.to_yaml() if changed else None,
            project=config.project.root,
        )
        return _fit(trainer, folder, resume=True)


def _fit(trainer: Trainer, folder: RunFolder, *, resume: bool) -> int:
    trainer.run_dir = folder
    _introduce(trainer, folder)
    begun = time.monotonic()
    trainer.fit(resume=resume)
    _conclude(trainer, folder, time.monotonic() - begun)
    return EXIT_PREEMPTED if trainer.preemption else EXIT_DONE


def _introduce(trainer: Trainer, folder: RunFolder) -> None:
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    sizes = [
        f"{len(data):,} {name}"
        for name, data in (
            ("train", trainer.train_data),
            ("validation", trainer.val_data),
            ("test", trainer.test_data),
        )
        if hasattr(data, "__len__")
    ]
    frozen = f", {trained:,} of them trained" if trained != parameters else ""
    say(f"run    {_shown(folder.path)}")
    place = f"{trainer.settings.precision} on {trainer.device}"
    say(f"model  {type(trainer.model).__name__}: {parameters:,} parameters{frozen}, {place}")
    say(f"data   {', '.join(sizes)} samples; {trainer.total_steps:,} steps of {trainer.batch_size}")


def _conclude(trainer: Trainer, folder: RunFolder, seconds: float) -> None:
    """Where the run lies, how good it was, and what can be done now."""
    path = _shown(folder.path)
    state = trainer.state
    if trainer.preemption:
        say(f"to go on: flambeau resume {path}")
        return
    say()
    say(f"done: {trainer.epoch} epochs, {state.step:,} steps in {seconds:.1f} s")
    say(f"  run    {path}")
    if state.best_step is not None:
        say(f"  best   {trainer.monitor} {state.best_score:.4f} at step {state.best_step}")
    split = "test" if trainer.test_data is not None else "val"
    commands = [
        f"flambeau evaluate {path} --split {split}",
        f"flambeau predict {path} --input {split} --output predictions.csv",
    ]
    commands.append(f"tensorboard --logdir {path}" if folder.tensorboard.exists() else "flambeau runs")
    for number, command in enumerate(commands):
        say(f"  {'next ' if number == 0 else '     '}  {command}")


def _explain_new_length(trainer: Trainer, old_total: int, step: int, force: bool) -> None:
    """Say what another length does to the schedule, and refuse it if the steps so far would have had another one."""
    new_total = trainer.total_steps
    if new_total < step:
        raise UsageError(f"the run is at step {step} already, and {new_total} are asked for")
    change = describe_replanning(trainer.scheduler, old_total, new_total, step)
    if change is None:
        say(f"length: {old_total} -> {new_total} steps; the schedule of the steps so far stays the same")
    elif not force:
        raise UsageError(change, remedy="--force goes on so; a constant schedule can be made longer without")


def _shown(path: Path) -> str:
    """A path as a person would type it here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
