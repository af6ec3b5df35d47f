"""The sections `optimizers` and `schedulers`: checked like every other, before torch is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml
from support.projects import ROOT

from flambeau.cli import main
from flambeau.config import Config, Project
from flambeau.config.schema import json_schema
from flambeau.errors import Problem

Write = Callable[[str, str], Path]
Load = Callable[..., Config]
Problems = Callable[..., list[Problem]]

SEVERAL = """\
base: [base]
optimizer: null
optimizers:
  head: {name: plain, lr: 0.1, momentum: 0.5}
  body: {name: fancy, parameters: ["body.*", "stem.*"], no_decay: true}
schedulers:
  head: {name: cosine, warmup_steps: 3}
trainer: {name: mine}
"""

TRAINER = '''
from flambeau import Trainer, register


@register.trainer("mine")
class Mine(Trainer):
    """Steps the head and the body."""
'''


@pytest.fixture(autouse=True)
def several(project: Project, write: Write) -> None:
    (project.root / "trainers.py").write_text(TRAINER)
    write("several", SEVERAL)


def told(problems: list[Problem]) -> str:
    return "\n".join(map(str, problems))


def test_each_label_has_its_part_its_settings_and_its_schedule(load: Load) -> None:
    values = load("several").values
    assert "optimizer" not in values
    assert values["optimizers"]["body"] == {"name": "fancy", "parameters": ["body.*", "stem.*"], "no_decay": True}
    assert values["schedulers"] == {"head": {"name": "cosine", "warmup_steps": 3}}


def test_without_a_name_a_label_is_adamw_and_a_constant_schedule(load: Load, problems: Problems) -> None:
    overrides = ("optimizers.head={weight_decay: 0.1}", "schedulers.head={warmup_steps: 2}")
    assert load("several", *overrides).values["optimizers"]["head"] == {"weight_decay": 0.1}
    found = told(problems("several", "optimizers.head={momentum: 0.9}", "schedulers.head={final_factor: 0}"))
    assert "optimizers.head.momentum: adamw takes no such argument" in found
    assert "schedulers.head.final_factor: constant takes no such argument" in found


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer={name: plain}"], r"both `optimizer` (command line) and `optimizers`"),
        (["optimizers.head.lrr=1"], "optimizers.head.lrr: plain takes no such argument; did you mean 'lr'?"),
        (["optimizers.head.momentum=fast"], "optimizers.head.momentum: expected a number"),
        (["optimizers.head.name=plian"], "no optimizer is called 'plian'; did you mean 'plain'?"),
        (["optimizers.body.parameters=body"], "optimizers.body.parameters: expected a list"),
        (["optimizers.body.groups=[{patern: a}]"], "optimizers.body.groups.0.patern"),
        (["schedulers.haed={name: cosine}"], "schedulers.haed: no optimizer is called so; did you mean 'head'?"),
        (["schedulers.head.name=cosin"], "no scheduler is called 'cosin'; did you mean 'cosine'?"),
        (["optimizers=null"], "schedulers: there are no `optimizers`"),
        (["trainer.name=default"], "the default trainer makes its updates with one optimizer"),
        (["optimizers.head.params=[]"], "optimizers.head.params: plain takes no such argument"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(problems: Problems, overrides: list[str], message: str) -> None:
    assert message in told(problems("several", *overrides))


def test_a_label_is_a_name(problems: Problems, write: Write) -> None:
    write("dotted", "base: [several]\noptimizers: {body.stem: {name: plain}}\n")
    assert "a label is a name of letters, digits and _" in told(problems("dotted"))


def test_a_later_layer_changes_one_of_them(load: Load, write: Write) -> None:
    """Another name starts the part's arguments anew and keeps the engine's settings; `null` takes one away."""
    write("next", "base: [several]\noptimizers: {head: null, body: {name: plain, lr: 3}}\nschedulers: null\n")
    assert load("next").values["optimizers"] == {
        "body": {"name": "plain", "lr": 3, "parameters": ["body.*", "stem.*"], "no_decay": True}
    }
    assert load("several", "optimizers.body.name=plain").values["optimizers"]["body"] == {
        "name": "plain",
        "parameters": ["body.*", "stem.*"],
        "no_decay": True,
    }


def test_the_configuration_is_shown_with_defaults_and_loads_as_it_is_written(
    load: Load, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "several"]) == 0
    shown = capsys.readouterr().out
    assert "beta: 0.9" in shown
    assert "final_factor: 0.0" in shown
    write("again", load("several").to_yaml())
    assert load("again").values == load("several").values
    assert main(["list", "optimizers", "--json"]) == 0
    names = [part["name"] for part in json.loads(capsys.readouterr().out)["optimizers"]]
    assert {"plain", "fancy", "adamw"} <= set(names)


def test_editors_know_the_sections(project: Project) -> None:
    validator = jsonschema.Draft7Validator(json_schema(project))
    assert not list(validator.iter_errors(yaml.safe_load(SEVERAL)))
    for wrong in (
        "optimizers: {head: {name: plain, lrr: 1}}",
        "optimizers: {head: {name: plian}}",
        "optimizers: {head: {parameters: body}}",
        "optimizers: [plain]",
        "schedulers: {head: {name: cosine, final: 0}}",
    ):
        assert list(validator.iter_errors(yaml.safe_load(wrong))), wrong


def test_torch_is_not_imported_to_check_them(project: Project) -> None:
    code = (
        "import sys; from flambeau.cli import main; status = main(['config', 'several']);"
        "sys.exit(9 if 'torch' in sys.modules else status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project.root, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
