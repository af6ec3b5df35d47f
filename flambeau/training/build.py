"""From a checked configuration to a trainer: the way of every setting to its use."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from flambeau.config import Config
from flambeau.config.convert import to_arguments, to_settings
from flambeau.config.data_values import data_values, with_data_values
from flambeau.config.sections import (
    CheckpointSettings,
    LoaderSettings,
    OptimizerSettings,
    PretrainedSettings,
    TrainerSettings,
)
from flambeau.config.slots import SLOTS
from flambeau.config.start_points import start_points
from flambeau.distributed.deferred import build_on_meta
from flambeau.distributed.sharding import check_sharding, prepare_model
from flambeau.errors import UsageError
from flambeau.optim import build_optimizer
from flambeau.registry import load_part, takes_batch
from flambeau.runtime.devices import resolve_device
from flambeau.runtime.seeds import derive, isolated, seed_all
from flambeau.runtime.world import current_world
from flambeau.tracking import Tracker
from flambeau.training.freeze import Freezing
from flambeau.training.start import StartPoints
from flambeau.training.trainer import Trainer

SETTINGS = {"data": LoaderSettings, "optimizer": OptimizerSettings, "trainer": TrainerSettings}
"""The settings that the engine reads itself in a section that names a part."""


@dataclass(frozen=True)
class Recipe:
    """One part of a configuration: what is called, and with which arguments."""

    section: str
    part: Callable[..., Any]
    arguments: dict[str, Any]

    @property
    def _is_criterion_function(self) -> bool:
        """Whether the part is itself the function of (outputs, targets), not what makes one."""
        return self.section == "criterion" and takes_batch(self.part)

    def takes(self, name: str) -> bool:
        """Whether the part has a parameter of this name."""
        try:
            return name in inspect.signature(self.part).parameters
        except ValueError:
            return False

    def check(self, *passed: str) -> None:
        """Refuse arguments that the part does not take, before anything is built.

        Args:
            passed: arguments that the engine adds.
        """
        batch = (None, None) if self._is_criterion_function else ()
        try:
            inspect.signature(self.part).bind(*batch, **dict.fromkeys(passed), **self.arguments)
        except TypeError as error:
            raise UsageError(f"{self.section}: {getattr(self.part, '__name__', self.part)}: {error}") from error
        except ValueError:
            return  # a callable without a readable signature judges its arguments itself

    def build(self, **passed: Any) -> Any:
        """The part; what the configuration says wins over what the engine passes."""
        if self._is_criterion_function:
            return partial(self.part, **to_arguments(self.part, self.arguments))
        return self.part(**{**passed, **to_arguments(self.part, self.arguments)})


@dataclass(frozen=True)
class Recipes:
    """All parts of a configuration, imported and their arguments checked; nothing is built yet."""

    data: Recipe
    model: Recipe
    criterion: Recipe
    optimizer: Recipe
    scheduler: Recipe
    trainer: Recipe
    metrics: dict[str, Recipe]
    callbacks: dict[str, Recipe]
    trackers: dict[str, Recipe]

    @classmethod
    def of(cls, config: Config) -> Recipes:
        """Import the parts that a configuration names.

        Raises:
            UsageError: a part cannot be had.
        """
        one, many = partial(_recipe, config), partial(_recipes, config)
        return cls(
            data=one("data"),
            model=one("model"),
            criterion=one("criterion"),
            optimizer=one("optimizer"),
            scheduler=one("scheduler"),
            trainer=one("trainer"),
            metrics=many("metrics"),
            callbacks=many("callbacks"),
            trackers=many("tracking"),
        )

    def check(self) -> None:
        """Compare all arguments with the parts' real signatures.

        Raises:
            UsageError: a part does not take what it is given.
        """
        for recipe in (
            self.data,
            self.model,
            self.criterion,
            *self.metrics.values(),
            *self.callbacks.values(),
        ):
            recipe.check()
        self.optimizer.check("params")
        self.scheduler.check("total_steps")
        self.trainer.check("model", "train_data")
        for recipe in self.trackers.values():
            recipe.check("run_dir", "resume_step")


def build_data(config: Config, recipes: Recipes) -> tuple[Any, Config]:
    """The data module, and the configuration with what refers to it (`${data.num_classes}`) filled in."""
    recipe = recipes.data
    data = recipe.build(**({"seed": _seed(config)} if recipe.takes("seed") else {}))
    return data, replace(config, values=config.with_data(data))


def build_model(config: Config, recipe: Recipe) -> nn.Module:
    """The model, on the CPU, its weights initialised from the configuration's seed."""
    seed_all(derive(_seed(config), "model"))
    model = recipe.build()
    if not isinstance(model, nn.Module):
        name = config.values["model"]["name"]
        raise UsageError(f"model: {name} gives a {type(model).__name__}, not an nn.Module")
    return model


def build_trainer(config: Config, *, device: str = "auto") -> Trainer:
    """The trainer that a configuration describes.

    All parts are imported and their arguments checked before any data is read.

    Raises:
        UsageError: a part cannot be had, or does not take what it is given.
    """
    config.project.activate()
    recipes = Recipes.of(config)
    recipes.check()
    place = resolve_device(device)

    data, filled = build_data(config, recipes)
    taken, config = data_values(config, filled), filled
    recipes = Recipes.of(config)
    settings = to_settings(TrainerSettings, _settings(config, "trainer"))
    check_sharding(settings)
    world = current_world()
    build, weights = partial(build_model, config, recipes.model), None
    if settings.fsdp is not None and settings.fsdp.meta_init and world.size > 1:
        model, weights = build_on_meta(build)
    else:
        model = build()
    if settings.precision == "fp64":
        model.double()
    Freezing(model, settings)
    # Before the optimizer is made of its parameters: to shard a model gives it others.
    model = prepare_model(model, settings, world, place, weights)
    seed_all(derive(_seed(config), "parts"))
    optimizer = recipes.optimizer

    trainer: Trainer = recipes.trainer.build(
        model=model,
        train_data=data.train,
        val_data=data.val,
        test_data=data.test,
        criterion=recipes.criterion.build(),
        optimizer=build_optimizer(
            model,
            optimizer.part,
            to_arguments(optimizer.part, optimizer.arguments),
            to_settings(OptimizerSettings, _settings(config, "optimizer")),
            place,
        ),
        metrics={label: metric.build() for label, metric in recipes.metrics.items()},
        scheduler=recipes.scheduler.build,
        callbacks={label: callback.build() for label, callback in recipes.callbacks.items()},
        trackers=partial(_build_trackers, config, recipes),
        train_transform=getattr(data, "train_transform", None),
        eval_transform=getattr(data, "eval_transform", None),
        batch_transform=getattr(data, "batch_transform", None),
        seed=_seed(config),
        device=place,
        settings=settings,
        loader=to_settings(LoaderSettings, _settings(config, "data")),
        checkpoint=to_settings(CheckpointSettings, config.section("checkpoint")),
        start_points=StartPoints(
            [to_settings(PretrainedSettings, part) for _, part in start_points(config.values.get("pretrained"))],
            config.project.root,
        ),
    )
    trainer.data_values = taken
    return trainer


def rebuild_model(config: Config, values: Mapping[str, Any]) -> nn.Module:
    """The model of a run that lies on disk, on the CPU, its weights not yet those of the run.

    Nothing else of the run is built or imported; the data only if `values` lack what the model took from it.

    Args:
        values: what the run's configuration took from its data, by dotted key.
    """
    config.project.activate()
    filled = with_data_values(config, values, "model")
    if filled is None:
        recipes = Recipes.of(config)
        recipes.check()
        _, filled = build_data(config, recipes)
    with isolated(_seed(config)):
        model = build_model(filled, _recipe(filled, "model"))
    if filled.section("trainer").get("precision") == "fp64":
        model.double()
    return model


def _recipe(config: Config, section: str) -> Recipe:
    slot = SLOTS[section]
    values = config.section(section)
    name = values.pop("name", slot.default)
    assert slot.kind is not None
    recipe = Recipe(section, load_part(slot.kind, name, config.project.root), values)
    engine = {key for key in _engine_keys(section) if not recipe.takes(key)}
    return replace(recipe, arguments={key: value for key, value in values.items() if key not in engine})


def _recipes(config: Config, section: str) -> dict[str, Recipe]:
    slot = SLOTS[section]
    assert slot.kind is not None
    given = config.values.get(section) or {}
    found = {}
    for label in given:
        arguments = {} if isinstance(given, list) else dict(given[label] or {})
        part = load_part(slot.kind, arguments.pop("name", label), config.project.root)
        found[label] = Recipe(f"{section}.{label}", part, arguments)
    return found


def _engine_keys(section: str) -> set[str]:
    return {field.name for field in fields(SETTINGS[section])} if section in SETTINGS else set()


def _settings(config: Config, section: str) -> dict[str, Any]:
    """The values of a section that the engine reads itself."""
    return {key: value for key, value in config.section(section).items() if key in _engine_keys(section)}


def _seed(config: Config) -> int:
    return int(config.values.get("seed", 0))


def _build_trackers(config: Config, recipes: Recipes, run_dir: Path, resume_step: int | None) -> list[Tracker]:
    trackers = [recipe.build(run_dir=run_dir, resume_step=resume_step) for recipe in recipes.trackers.values()]
    for tracker in trackers:
        tracker.log_config(config.written())
    return trackers
