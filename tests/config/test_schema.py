"""The JSON schema that editors use says the same as the configuration check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from flambeau.config.project import SHIPPED, Project
from flambeau.config.schema import json_schema

MODEL = '''
from flambeau import register
from torch import nn

@register.model("mine")
class Mine(nn.Module):
    """My model."""
    def __init__(self, width: int = 1, mode: "str | None" = None, inf: float = float("inf")): ...

@register.model("open")
def make(**kwargs):
    return other(**kwargs)
'''


@pytest.fixture(scope="module")
def validator(tmp_path_factory: pytest.TempPathFactory) -> jsonschema.Draft7Validator:
    """The schema of a project with a model of its own."""
    root = tmp_path_factory.mktemp("project")
    (root / "mine.py").write_text(MODEL)
    schema = json_schema(Project(root))
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def read(text: str) -> Any:
    """YAML as an editor's plugin reads it."""
    return yaml.safe_load(text)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_configurations_are_valid(validator: jsonschema.Draft7Validator, path: Path) -> None:
    """Each as the file that it is, with what its bases say left out."""
    # PyYAML reads `1e-3` as text; editors follow YAML 1.2 and read a number.
    values = read(path.read_text().replace("1e-3", "0.001").replace("3e-4", "0.0003"))
    assert [error.message for error in validator.iter_errors(values)] == []


@pytest.mark.parametrize(
    "text",
    [
        "model: {name: mine, width: 3}",
        "model: {name: mine, width: '${vars.width}'}",
        "model: {width: 3}",
        "model: {name: timm.create_model, model_name: resnet18}",
        "model: {name: open, whatever: 3}",
        "optimizer: {name: adamw, lr: 0.001, betas: [0.9, 0.99], no_decay: true}",
        "optimizer: {groups: [{pattern: 'a.*', lr: 0.1}]}",
        "scheduler: null",
        "trainer: {epochs: 3, early_stopping: {patience: 2}, ema: null}",
        "metrics: {accuracy: {}, top3: {name: top_k_accuracy, k: 3}, old: null}",
        "tracking: [tensorboard]",
        "tracking: {tensorboard: {}}",
        "base: [default]",
        "base: default",
        "vars: {a: {b: 1}}",
        "seed: '${env:SEED}'",
    ],
)
def test_what_the_check_takes_is_valid(validator: jsonschema.Draft7Validator, text: str) -> None:
    """References, import paths, and files that continue others included."""
    assert [error.message for error in validator.iter_errors(read(text))] == []


@pytest.mark.parametrize(
    "text",
    [
        "sede: 1",
        "model: {name: mine, widht: 3}",
        "model: {name: mine, width: wide}",
        "model: {name: mien}",
        "model: mine",
        "optimizer: {name: adamw, weigth_decay: 0.1}",
        "optimizer: {groups: [{patern: a}]}",
        "trainer: {name: default, erly_stopping: {}}",
        "trainer: {early_stopping: {patiense: 3}}",
        "trainer: {precision: bf17}",
        "data: {batch_size: 0}",
        "checkpoint: {keep: 3}",
        "metrics: {accuracy: {treshold: 1}}",
        "tracking: [tensorbord]",
        "seed: -1",
    ],
)
def test_what_the_check_refuses_is_not_valid(validator: jsonschema.Draft7Validator, text: str) -> None:
    """Unknown keys, wrong types, wrong choices, wrong names."""
    assert list(validator.iter_errors(read(text)))


def test_editors_get_meanings_and_defaults(validator: jsonschema.Draft7Validator) -> None:
    """What is shown when the cursor rests on a key."""
    trainer = validator.schema["properties"]["trainer"]["properties"]
    assert trainer["log_every"]["default"] == 50
    assert "Optimizer steps between two log lines" in trainer["log_every"]["description"]
    names = validator.schema["properties"]["model"]["properties"]["name"]["anyOf"][0]["enum"]
    assert {"mine", "lenet"} <= set(names)
