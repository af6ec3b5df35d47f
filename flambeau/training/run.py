"""A run from its configuration to its end: folder, lock, record, training, last words."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from flambeau.config import Config
from flambeau.config.difference import check_changes, differences
from flambeau.config.modifications import modifications_of_files
from flambeau.config.origin import shown
from flambeau.config.scaling import scaling_of
from flambeau.config.showing import tree
from flambeau.console import say
from flambeau.errors import EXIT_DONE, RunFolderError, UsageError
from flambeau.launch.environment import agent_of_this_process
from flambeau.launch.identity import find_begun_run
from flambeau.launch.lead import lead
from flambeau.launch.ranks import place_rank_log
from flambeau.launch.worker import describe, goes_on, preempted_status
from flambeau.run_folder import RunFolder
from flambeau.run_folder.saved_config import load_saved_config
from flambeau.run_folder.status import Status
from flambeau.runtime.devices import describe_hardware, resolve_device
from flambeau.runtime.shards import class_name
from flambeau.runtime.world import World, current_world, leave_world
from flambeau.training import snapshot
from flambeau.training.build import build_trainer
from flambeau.training.recorder import write_log
from flambeau.training.trainer import Trainer

logger = logging.getLogger("flambeau")


def start_run(
    config: Config, *, device: str, run_dir: Path | None, command: Sequence[str], resume: bool = False
) -> int:
    """Train a configuration in a new run folder; returns the exit status.

    Processes that a torchrun agent starts anew go on with the run that the ones before them began.

    Args:
        resume: go on with the run in `run_dir`, if one has begun there; it is no error if it is finished.
    """
    run = _Run.build(config, device, command)
    runs_dir = config.project.root / config.values.get("runs_dir", "runs")

    def open_folder() -> RunFolder:
        begun = [run_dir] if run_dir is not None else [*(runs_dir / config.name).glob("*")]
        if (found := find_begun_run(begun, run.agents)) is not None:
            return run.take_up(found)
        if resume and run_dir is not None and (run_dir / "status.json").is_file():
            return run.take_up(RunFolder.open(run_dir), saved=True)
        run.trainer.start_points.plan(run.trainer)
        folder = RunFolder.create(runs_dir, config.name, path=run_dir, agents=run.agents, debug=config.debug)
        return run.begin(folder)

    return run.train(open_folder)


def resume_run(
    config: Config, folder: RunFolder, *, changed: bool, device: str, force: bool, command: Sequence[str]
) -> int:
    """Go on with the run in `folder`; returns the exit status.

    Args:
        changed: the configuration is not the one that the run had.
        force: go on even if a longer run has another schedule than the one so far, or the data have changed.
    """
    run = _Run.build(config, device, command, force=force)

    def open_folder() -> RunFolder:
        again = find_begun_run([folder.path], run.agents) is not None
        return run.take_up(folder, changed=changed, finished_is_fine=again)

    return run.train(open_folder)


@dataclass
class _Run:
    """What is known of a run before it has a folder."""

    config: Config
    device: str
    command: Sequence[str]
    force: bool
    world: World
    trainer: Trainer
    agents: list[str]
    resume: bool = False
    is_done: bool = False
    stack: ExitStack = field(default_factory=ExitStack)
    """What rank 0 holds until the run has ended: the folder's lock."""

    @classmethod
    def build(cls, config: Config, device: str, command: Sequence[str], *, force: bool = False) -> _Run:
        world = current_world()
        place = device_of(world, device)
        trainer = build_trainer(config, device=str(place))
        agents = sorted({agent for agent in world.gather(agent_of_this_process()) if agent is not None})
        return cls(config, device, command, force, world, trainer, agents)

    def begin(self, folder: RunFolder) -> RunFolder:
        """A new run in `folder`; on rank 0."""
        self.stack.enter_context(folder.lock())
        hardware = describe_hardware(self.trainer.device)
        folder.write_start(self.config.to_yaml(), self.command, hardware, project=self.config.project.root)
        folder.write_data_values(self.trainer.data_values)
        return folder

    def take_up(
        self, folder: RunFolder, *, changed: bool = False, saved: bool = False, finished_is_fine: bool = True
    ) -> RunFolder:
        """Go on with the run in `folder`; on rank 0.

        Args:
            changed: the configuration is not the one that lies in the folder.
            saved: find out whether it is.
            finished_is_fine: there may be nothing left to do.
        """
        # An agent has stopped all earlier processes that it can reach before it starts new ones.
        again = find_begun_run([folder.path], self.agents) is not None
        self.stack.enter_context(folder.lock(take_over=again))
        if saved and folder.config_file.exists():
            changes = differences(load_saved_config(folder), self.config)
            check_changes(changes, force=self.force)
            changed = bool(changes)
        status = folder.status
        lengths = (status.total_steps, status.planned_steps or status.total_steps)
        if status.total_steps is not None and lengths != (self.trainer.total_steps, self.trainer.planned_steps):
            _explain_new_length(self.trainer, status, self.force)
        elif status.state == "finished":
            if not finished_is_fine:
                raise RunFolderError(
                    f"{_shown(folder.path)} is finished, at step {status.step}",
                    remedy=f"to train longer: flambeau resume {_shown(folder.path)} trainer.epochs=N",
                )
            say(f"{_shown(folder.path)} is finished, at step {status.step}: there is nothing left to do")
            self.is_done = True
            return folder
        self.resume = True
        folder.update_status(agents=self.agents)
        if not folder.config_file.exists():  # the run ended before its beginning was written down
            changed = True
        folder.write_resume(
            self.command,
            describe_hardware(self.trainer.device),
            config_yaml=self.config.to_yaml() if changed else None,
            project=self.config.project.root,
        )
        folder.write_data_values(self.trainer.data_values)
        return folder

    def train(self, open_folder: Callable[[], RunFolder]) -> int:
        """Open the folder on rank 0, train on all; returns the exit status."""
        folder: RunFolder | None = None

        def open_for_all() -> dict[str, str | bool]:
            nonlocal folder
            folder = open_folder()
            return {"path": str(folder.path), "resume": self.resume, "done": self.is_done}

        status = EXIT_DONE
        with self.stack:
            opened = lead(self.world, open_for_all)
            folder = folder or RunFolder(Path(opened["path"]))
            place_rank_log(folder.path)
            if not opened["done"]:
                with self._failure_is_told(folder):
                    status = self._fit(folder, resume=opened["resume"])
        self.world.barrier()  # rank 0 may hold what the others use to leave
        leave_world()
        return status

    def _fit(self, folder: RunFolder, *, resume: bool) -> int:
        """Train; returns the exit status."""
        trainer = self.trainer
        trainer.run_dir = folder
        if self.world.is_main:
            scaling = scaling_of(self.config, self.world.size)
            _log_configuration(self.config, folder)
            _introduce(trainer, folder, self.world, scaling)
        begun = time.monotonic()
        trainer.fit(resume=resume, force=self.force)
        if trainer.preemption is None:
            if self.world.is_main:
                _conclude(trainer, folder, time.monotonic() - begun)
            return EXIT_DONE
        going_on = goes_on(self.world)
        if self.world.is_main and not going_on:
            say(f"to go on: flambeau resume {_shown(folder.path)}{self._devices()}")
        return preempted_status(going_on=going_on)

    def _devices(self) -> str:
        """The options that start as many processes again, where they are all on one machine."""
        if self.world.size == 1 or self.world.size != self.world.local_size:
            return ""
        number = "" if "," in self.device else f" --processes {self.world.size}"
        return f" -d {self.device}{number}"

    @contextmanager
    def _failure_is_told(self, folder: RunFolder) -> Iterator[None]:
        """Of several processes, the status says which one failed."""
        try:
            yield
        except BaseException as error:
            if self.world.is_main and self.world.size > 1:
                folder.update_status(state="failed", error=describe(error))
            raise


def device_of(world: World, device: str) -> torch.device:
    """The device of this process, of those that the command line names; it becomes the current one.

    Raises:
        UsageError: it is not there.
    """
    place = resolve_device(device, world.local_rank if world.size > 1 else None)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    return place


def _log_configuration(config: Config, folder: RunFolder) -> None:
    """Write into log.txt what is in force, where each value comes from, and what is other than in the files."""
    changes = {change.key: change for change in modifications_of_files(config)}
    lines = [
        f"  {line.text}  # {line.origin}" + (f", {changes[line.key].note}" if line.key in changes else "")
        for line in tree(config)
    ]
    told = [f"  {change}" for change in changes.values()]
    handler = write_log(folder)
    try:
        logger.info("the configuration %s:\n%s", config.name, "\n".join(lines))
        if told:
            logger.info("other than in %s:\n%s", shown(config.sources[-1]), "\n".join(told))
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _introduce(trainer: Trainer, folder: RunFolder, world: World, scaling: str | None) -> None:
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
    if world.size > 1:
        place = f"{trainer.settings.precision} on {trainer.device.type}, {world.size} processes"
    say(f"model  {class_name(trainer.model)}: {parameters:,} parameters{frozen}, {place}")
    say(f"data   {', '.join(sizes)} samples; {trainer.total_steps:,} steps of {trainer.batch_size}")
    if scaling is not None:
        say(f"lr     {scaling}")


def _conclude(trainer: Trainer, folder: RunFolder, seconds: float) -> None:
    """Where the run lies, how good it was, and what can be done now."""
    path = _shown(folder.path)
    state = trainer.state
    say()
    shortened = f" ({debug}: no result to keep)" if (debug := trainer.settings.debug) else ""
    say(f"done{shortened}: {trainer.epoch} epochs, {state.step:,} steps in {seconds:.1f} s")
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


def _explain_new_length(trainer: Trainer, status: Status, force: bool) -> None:
    """Say what another length does to the schedule, and refuse it if the steps so far would have had another one."""
    old_total, new_total, step = status.total_steps or 0, trainer.total_steps, status.step
    if new_total < step:
        raise UsageError(f"the run is at step {step} already, and {new_total} are asked for")
    change = snapshot.replanning(trainer, status.planned_steps or old_total, step)
    if change is None:
        say(f"length: {old_total} -> {new_total} steps; the schedule of the steps so far stays the same")
    elif not force:
        raise UsageError(change, remedy="--force goes on so; a constant schedule can be made longer without")


def _shown(path: Path) -> str:
    """A path as a person would type it here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
