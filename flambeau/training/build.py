"""From a checked configuration to a trainer: the way of every setting to its use."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from flambeau.config import Config
from flambeau.config.convert import to_arguments, to_settings
from flambeau.config.data_values import data_values, with_data_values
from flambeau.config.sections import (
    CheckpointSettings,
    LoaderSettings,
    NamedOptimizerSettings,
    OptimizerSettings,
    PretrainedSettings,
    TrainerSettings,
)
from flambeau.config.slots import ORDERED, SLOTS
from flambeau.config.start_points import start_points
from flambeau.data.parts import require_disjoint
from flambeau.data.pipeline import BatchTransforms, SampleTransforms
from flambeau.distributed.deferred import build_on_meta
from flambeau.distributed.sharding import check_sharding, prepare_model
from flambeau.errors import UsageError
from flambeau.optim import Schedule, build_optimizer, takes_epochs
from flambeau.optim.shares import shares_of
from flambeau.registry import DATA_ARGUMENTS, load_part, takes_data
from flambeau.runtime.devices import resolve_device
from flambeau.runtime.seeds import derive, isolated, seed_all
from flambeau.runtime.world import current_world
from flambeau.tracking import Tracker
from flambeau.training.freeze import Freezing
from flambeau.training.plan import global_batch
from flambeau.training.start import StartPoints
from flambeau.training.trainer import Trainer

SETTINGS = {
    "data": LoaderSettings,
    "optimizer": OptimizerSettings,
    "optimizers": NamedOptimizerSettings,
    "trainer": TrainerSettings,
}
"""The settings that the engine reads itself in a section that names a part."""


@dataclass(frozen=True)
class Recipe:
    """One part of a configuration: what is called, and with which arguments."""

    section: str
    part: Callable[..., Any]
    arguments: dict[str, Any]

    @property
    def _kind(self) -> str:
        return SLOTS[self.section.partition(".")[0]].kind or ""

    @property
    def _is_function_of_data(self) -> bool:
        """Whether the part is itself the function of (outputs, targets) or of a sample, not what makes one."""
        return takes_data(self._kind, self.part)

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
        batch = (None,) * DATA_ARGUMENTS[self._kind] if self._is_function_of_data else ()
        try:
            inspect.signature(self.part).bind(*batch, **dict.fromkeys(passed), **self.arguments)
        except TypeError as error:
            raise UsageError(f"{self.section}: {getattr(self.part, '__name__', self.part)}: {error}") from error
        except ValueError:
            return  # a callable without a readable signature judges its arguments itself

    def build(self, **passed: Any) -> Any:
        """The part; what the configuration says wins over what the engine passes."""
        if self._is_function_of_data:
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
    weight_decay_scheduler: Recipe | None
    trainer: Recipe
    transforms: dict[str, dict[str, Recipe]]
    metrics: dict[str, Recipe]
    callbacks: dict[str, Recipe]
    trackers: dict[str, Recipe]
    optimizers: dict[str, Recipe]
    schedulers: dict[str, Recipe]

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
            weight_decay_scheduler=one("weight_decay_scheduler")
            if config.values.get("weight_decay_scheduler")
            else None,
            trainer=one("trainer"),
            transforms={section: many(section) for section in ORDERED},
            metrics=many("metrics"),
            callbacks=many("callbacks"),
            trackers=many("tracking"),
            optimizers=many("optimizers"),
            schedulers=many("schedulers"),
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
            *(recipe for recipes in self.transforms.values() for recipe in recipes.values()),
            *self.metrics.values(),
            *self.callbacks.values(),
        ):
            recipe.check()
        for recipe in (self.optimizer, *self.optimizers.values()):
            recipe.check("params")
        for recipe in (self.scheduler, *self.schedulers.values()):
            recipe.check("total_steps")
        if self.weight_decay_scheduler is not None:
            self.weight_decay_scheduler.check("total_steps")
        self.trainer.check("model", "train_data")
        for recipe in self.trackers.values():
            recipe.check("run_dir", "resume_step")


def build_data(config: Config, recipes: Recipes) -> tuple[Any, Config]:
    """The data module, and the configuration with what refers to it (`${data.num_classes}`) filled in."""
    recipe = recipes.data
    data = recipe.build(**({"seed": _seed(config)} if recipe.takes("seed") else {}))
    return data, replace(config, values=config.with_data(data))


def build_transforms(config: Config, recipes: Recipes, data: Any) -> dict[str, Any]:
    """The transforms of samples and batches: what the data module brings, then what the configuration names."""

    def pipeline(section: str, kind: Any, of_data: str) -> Any:
        before = getattr(data, of_data, None)
        given = config.values.get(section)
        named: dict[str, Any] = given if isinstance(given, dict) else {}
        steps = {
            f"{section}.{label}": (recipe.build(), (named.get(label) or {}).get("on"))
            for label, recipe in recipes.transforms[section].items()
        }
        return kind(steps, before) if steps else before

    return {
        "train_transform": pipeline("train_transforms", SampleTransforms, "train_transform"),
        "eval_transform": pipeline("eval_transforms", SampleTransforms, "eval_transform"),
        "batch_transform": pipeline("batch_transforms", BatchTransforms, "batch_transform"),
        "train_batch_transform": pipeline("train_batch_transforms", BatchTransforms, "train_batch_transform"),
    }


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
    loader = to_settings(LoaderSettings, _settings(config, "data"))
    require_disjoint(loader, train=data.train, val=data.val, test=data.test)
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

    trainer: Trainer = recipes.trainer.build(
        model=model,
        train_data=data.train,
        val_data=data.val,
        test_data=data.test,
        criterion=recipes.criterion.build(),
        optimizer=_build_optimizers(config, recipes, model, place, global_batch(loader, world.size)),
        metrics={label: metric.build() for label, metric in recipes.metrics.items()},
        scheduler=_scheduler(recipes),
        weight_decay_scheduler=partial(_build_schedule, decay) if (decay := recipes.weight_decay_scheduler) else None,
        callbacks={label: callback.build() for label, callback in recipes.callbacks.items()},
        trackers=partial(_build_trackers, config, recipes),
        **build_transforms(config, recipes, data),
        collate=getattr(data, "collate", None),
        seed=_seed(config),
        device=place,
        settings=settings,
        loader=loader,
        checkpoint=to_settings(CheckpointSettings, config.section("checkpoint")),
        start_points=StartPoints(
            [to_settings(PretrainedSettings, part) for _, part in start_points(config.values.get("pretrained"))],
            config.project.root,
        ),
    )
    trainer.own_fingerprint = getattr(data, "fingerprint", None)
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


def _build_schedule(recipe: Recipe, *, total_steps: int, steps_per_epoch: int | None) -> Schedule:
    epochs = {"steps_per_epoch": steps_per_epoch} if takes_epochs(recipe.part) else {}
    return recipe.build(total_steps=total_steps, **epochs)  # type: ignore[no-any-return]


def _build_optimizers(
    config: Config, recipes: Recipes, model: nn.Module, place: torch.device, batch_size: int
) -> Optimizer | dict[str, Optimizer]:
    """The optimizer, or those of the section `optimizers` by label, each of its share of the parameters."""
    if not recipes.optimizers:
        recipe = recipes.optimizer
        settings = to_settings(OptimizerSettings, _settings(config, "optimizer"))
        arguments = to_arguments(recipe.part, recipe.arguments)
        return build_optimizer(model, recipe.part, arguments, settings, place, batch_size=batch_size)
    engine, sections = _engine_keys("optimizers"), config.section("optimizers")
    own = {
        label: to_settings(
            NamedOptimizerSettings, {key: value for key, value in (sections[label] or {}).items() if key in engine}
        )
        for label in recipes.optimizers
    }
    shares = shares_of(model, {label: settings.parameters for label, settings in own.items()})
    built = {}
    for label, recipe in recipes.optimizers.items():
        arguments = to_arguments(recipe.part, recipe.arguments)
        try:
            built[label] = build_optimizer(
                model, recipe.part, arguments, own[label], place, batch_size=batch_size, among=shares[label]
            )
        except UsageError as error:
            raise UsageError(f"optimizers.{label}: {error.message}", remedy=error.remedy) from error
    return built


def _scheduler(recipes: Recipes) -> Any:
    """What makes the schedule; of several optimizers, by label: each one's own, or the one of all."""
    if not recipes.optimizers:
        return partial(_build_schedule, recipes.scheduler)
    return {
        label: partial(_build_schedule, recipes.schedulers.get(label, recipes.scheduler))
        for label in recipes.optimizers
    }


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
        if section in ORDERED:
            arguments.pop("on", None)  # the engine's
        part = load_part(slot.kind, arguments.pop("name", slot.part_under(label)), config.project.root)
        recipe = Recipe(f"{section}.{label}", part, arguments)
        engine = {key for key in _engine_keys(section) if not recipe.takes(key)}
        found[label] = replace(recipe, arguments={k: v for k, v in arguments.items() if k not in engine})
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
