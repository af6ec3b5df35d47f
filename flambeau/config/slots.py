"""The sections of a configuration: what stands in each, who reads it, what the engine adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

_SETTINGS = "flambeau.config.sections"
_RUN_LENGTH = frozenset({"total_steps", "steps_per_epoch"})


@dataclass(frozen=True)
class Slot:
    """One section of a configuration."""

    section: str
    """The top-level key: `optimizer`."""
    kind: str | None
    """The kind of part that stands here; None for a section of engine settings only."""
    form: Literal["one", "many"] = "one"
    """`one`: a mapping with `name`. `many`: a mapping of labels to arguments; without a default part the label is the
    name."""
    settings: str | None = None
    """Import path of the class of the settings that the engine reads itself, by the same section."""
    passed: frozenset[str] = frozenset()
    """Arguments that the engine gives to the part, so that a configuration does not."""
    offered: frozenset[str] = frozenset()
    """Arguments that the engine gives if the part takes them and the configuration is silent."""
    default: str | None = None
    """The part when the section has no `name`."""
    required: bool = False
    """Whether a configuration must have the section."""
    lists_names: bool = False
    """Whether a list of names may stand for the mapping (`tracking: [tensorboard]`)."""
    repeats: bool = False
    """Whether there may be several mappings of the settings, in a list or by label, in place of one."""

    def part_under(self, label: str) -> str:
        """The part that stands under a label without a `name`."""
        return self.default or label


_TRANSFORMS: Any = {"form": "many", "settings": f"{_SETTINGS}.TransformSettings", "lists_names": True}

SLOTS: Mapping[str, Slot] = {
    slot.section: slot
    for slot in (
        Slot(
            "data",
            "data",
            settings=f"{_SETTINGS}.LoaderSettings",
            offered=frozenset({"seed"}),
            required=True,
        ),
        Slot("train_transforms", "transform", **_TRANSFORMS),
        Slot("eval_transforms", "transform", **_TRANSFORMS),
        Slot("batch_transforms", "transform", **_TRANSFORMS),
        Slot("train_batch_transforms", "transform", **_TRANSFORMS),
        Slot("model", "model", required=True),
        Slot("pretrained", None, settings=f"{_SETTINGS}.PretrainedSettings", repeats=True),
        Slot("criterion", "criterion", required=True),
        Slot(
            "optimizer",
            "optimizer",
            settings=f"{_SETTINGS}.OptimizerSettings",
            passed=frozenset({"params"}),
            default="adamw",
        ),
        Slot(
            "optimizers",
            "optimizer",
            form="many",
            settings=f"{_SETTINGS}.NamedOptimizerSettings",
            passed=frozenset({"params"}),
            default="adamw",
        ),
        Slot("scheduler", "scheduler", passed=_RUN_LENGTH, default="constant"),
        Slot("schedulers", "scheduler", form="many", passed=_RUN_LENGTH, default="constant"),
        Slot("weight_decay_scheduler", "scheduler", passed=_RUN_LENGTH),
        Slot("trainer", "trainer", settings=f"{_SETTINGS}.TrainerSettings", default="default", required=True),
        Slot("checkpoint", None, settings=f"{_SETTINGS}.CheckpointSettings"),
        Slot("metrics", "metric", form="many"),
        Slot("callbacks", "callback", form="many"),
        Slot("tracking", "tracker", form="many", passed=frozenset({"run_dir", "resume_step"}), lists_names=True),
    )
}
"""Every section, in the order in which a configuration is best read."""

GENERAL: Mapping[str, str] = {
    "base": "Configurations to inherit from; later ones win, this file wins over them.",
    "seed": "Seed of everything random in the run.",
    "vars": "Values of one's own, to be referred to as ${vars.name}.",
    "runs_dir": "Folder in which run folders are made.",
}
"""The top-level keys that are no sections, with their meaning."""

ORDERED = tuple(slot.section for slot in SLOTS.values() if slot.kind == "transform")
"""Sections whose parts are applied one after the other, in the order in which they are written."""

TOP_LEVEL = (*GENERAL, *SLOTS)
"""All top-level keys."""
