"""The configuration check: every fault is found, nothing right is refused, and torch is not imported."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from flambeau.config.load import load_config
from flambeau.config.project import Project
from flambeau.errors import ConfigError, Problem

PARTS = '''
from flambeau import register
from flambeau.training import Trainer
from torch import nn
import torch

@register.data("numbers")
class Numbers:
    """Numbers."""
    def __init__(self, count: int = 8, *, seed: int):
        self.train = self.val = self.test = None
        self.num_classes = 10

@register.model("mlp")
class MLP(nn.Module):
    def __init__(self, num_classes: int, hidden_size: int = 64, dropout: float = 0.0): ...

@register.model("lenet")
class LeNet(nn.Module):
    def __init__(self, num_classes: int = 10, hidden_size: int = 84): ...

@register.model("anything")
def anything(**kwargs):
    return build(**kwargs)

@register.criterion("dice")
def dice(outputs, targets, smooth: float = 1.0): ...

@register.trainer("gan")
class GANTrainer(Trainer):
    def __init__(self, *args, noise_dim: int = 64, **kwargs):
        super().__init__(*args, **kwargs)
        self.noise_dim = noise_dim

from os import remove
from subprocess import Popen
class NotAModule: ...
class DataWithout:
    def __init__(self): self.samples = []
'''

WHOLE = """
data: {name: numbers}
model: {name: mlp, num_classes: 10}
criterion: {name: cross_entropy}
trainer: {epochs: 1}
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a few parts and a configuration `whole` that is right."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "parts.py").write_text(PARTS)
    (tmp_path / "configs" / "whole.yaml").write_text(WHOLE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(root: Path, *overrides: str, text: str | None = None) -> list[Problem]:
    """What is wrong with `whole`, or with a text in its place, after overrides."""
    if text is not None:
        (root / "configs" / "whole.yaml").write_text(textwrap.dedent(text))
    try:
        load_config("whole", overrides, environ={}, project=Project(root))
    except ConfigError as error:
        return error.problems
    return []


def test_a_right_configuration_has_no_problems(root: Path) -> None:
    """Seed is passed to the data by the engine, defaults stand for what is left out."""
    assert problems(root) == []


@pytest.mark.parametrize("model", ["mlp", "lenet"])
def test_the_four_typos_give_four_errors_with_four_right_suggestions(root: Path, model: str) -> None:
    """At every level, all at once, each with file and line."""
    found = problems(
        root,
        text=f"""\
        sede: 1
        data: {{name: numbers}}
        model: {{name: {model}, num_classes: 10, hiden_size: 32}}
        criterion: {{name: cross_entropy}}
        optimizer: {{name: adamw, weigth_decay: 0.1}}
        trainer:
          epochs: 1
          erly_stopping: {{patience: 3}}
        """,
    )
    assert [(problem.place, problem.key, problem.suggestion) for problem in found] == [
        ("configs/whole.yaml:1", "sede", "did you mean 'seed'?"),
        ("configs/whole.yaml:3", "model.hiden_size", "did you mean 'hidden_size'?"),
        ("configs/whole.yaml:5", "optimizer.weigth_decay", "did you mean 'weight_decay'?"),
        ("configs/whole.yaml:8", "trainer.erly_stopping", "did you mean 'early_stopping'?"),
    ]


def test_checking_imports_neither_torch_nor_a_part(root: Path) -> None:
    """Parts by name and by import path are judged from their source."""
    (root / "parts.py").write_text(PARTS + "\nraise RuntimeError('imported')\n")
    code = (
        "import sys; from flambeau.config.load import load_config;"
        "load_config('whole', ['optimizer.name=torch.optim.SGD', 'criterion.name=torch.nn.CrossEntropyLoss']);"
        "assert not {'torch', 'numpy', 'rich', 'parts'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, check=True, timeout=60)


WRONG = [
    ("model.name=mpl", "did you mean 'mlp'?"),
    ("optimizer.name=sdg", "did you mean 'sgd'?"),
    ("model.name=numbers", "'numbers' is a data"),
    ("scheduler.name=consine", "did you mean 'cosine'?"),
    ("metrics={acuracy: {}}", "did you mean 'accuracy'?"),
    ("tracking=[tensorbord]", "did you mean 'tensorboard'?"),
    ("model.name=parts.MPL", "did you mean 'MLP'?"),
    ("model.name=prats.MLP", "did you mean 'parts'?"),
    ("optimizer.name=torch.optim.AdmaW", "did you mean 'AdamW'?"),
    ("model.name=timm_is_not_here.create_model", "timm_is_not_here is not installed"),
    ("model={name: os.system, command: ls}", "standard library"),
    ("model={name: torch.load, f: x}", "refused"),
    ("model={name: builtins.eval}", "standard library"),
    ("data={name: pickle.load}", "standard library"),
    ("model={name: parts.remove, path: x}", "which is in Python's standard library"),
    ("data={name: parts.Popen, args: ls}", "subprocess.Popen, which is in Python's standard library"),
    ("model={name: torch.nn.functional.relu}", "only classes are taken"),
    ("model={name: torch.optim.AdamW}", "not a torch.nn.Module"),
    ("model={name: parts.NotAModule}", "not a torch.nn.Module"),
    ("optimizer={name: torch.nn.Linear}", "not a torch.optim.Optimizer"),
    ("optimizer={name: torch.optim.lr_scheduler.StepLR}", "not a torch.optim.Optimizer"),
    ("scheduler={name: torch.optim.lr_scheduler.StepLR}", "no scheduler"),
    ("data={name: parts.DataWithout}", "a data module has `train`"),
    ("metrics={m: {name: parts.NotAModule}}", "has no method `update`"),
    ("trainer.name=parts.NotAModule", "not a flambeau Trainer"),
    ("criterion={name: parts.NotAModule}", "neither a torch.nn.Module"),
    ("model.num_classes=ten", "expected an integer"),
    ("optimizer.lr=fast", "expected a number"),
    ("optimizer.betas=[0.9]", "expected a list of 2 values"),
    ("optimizer.groups=[{patern: a}]", "did you mean 'pattern'?"),
    ("data.batch_size=0", "of at least 1"),
    ("trainer.precision=bf17", "did you mean 'bf16'?"),
    ("trainer.ema={decay: 1}", "below 1"),
    ("criterion={name: torch.nn.CrossEntropyLoss, label_smothing: 0.1}", "did you mean 'label_smoothing'?"),
    ("criterion={name: dice, smoth: 2}", "did you mean 'smooth'?"),
    ("trainer={name: gan, epochs: 1, noise_dimm: 3}", "did you mean 'noise_dim'?"),
    ("trainer={name: gan, epochs: 1, train_data: 3}", "no such argument"),
    ("optimizer.params=[1]", "no such argument"),
    ("clip_norm=1", "there is trainer.clip_norm"),
    ("optimizer.epochs=3", "there is trainer.epochs"),
    ("trainer.patience=3", "there is trainer.early_stopping.patience"),
    ("model={name: mlp}", "model.num_classes"),
    ("model={name: mlp, num_clases: 3}", "did you mean 'num_classes'?"),
    ("model={num_classes: 3}", ""),
    ("model=lenet", "write {name: lenet}"),
    ("metrics=accuracy", "a mapping of names to arguments"),
    ("metrics={accuracy: 3}", "write `accuracy: {}`"),
    ("tracking=[3]", "expected a name"),
    ("seed=-1", "of at least 0"),
    ("seed=1.5", "expected an integer"),
    ("runs_dir=3", "expected text"),
    ("trainer.epochs=null", "give `epochs` or `steps`"),
    ("trainer.steps=100", "both `epochs`"),
    ("data.batch_size_per_rank=3 data.batch_size=4", "both `batch_size`"),
    ("data.prefetch=4", "there are no workers"),
    ("trainer.max_skips=4", "nan_policy: skip"),
    ("trainer.validate_every_steps=4 trainer.validate_every_epochs=2", "replaces it"),
]


@pytest.mark.parametrize("overrides, said", WRONG)
def test_each_fault_is_one_problem_with_its_remedy(root: Path, overrides: str, said: str) -> None:
    """Names, import paths, keys, types, ranges, choices, and settings that contradict each other."""
    given = overrides.split(" ") if "=" in overrides.rpartition(" ")[2] and "{" not in overrides else [overrides]
    if overrides == "model={num_classes: 3}":
        text = WHOLE.replace("name: mlp, ", "")
        assert [problem.message for problem in problems(root, text=text)] == ["`name` is missing"]
        return
    found = problems(root, *given)
    assert len(found) == 1, found
    assert said in str(found[0])


RIGHT = [
    ["model={name: anything, whatever: 3}"],
    ["model={name: parts.anything, whatever: 3}"],
    ["model={name: parts.MLP, num_classes: 3}"],
    ["model.num_classes=${data.num_classes}"],
    ["optimizer={name: sgd, lr: 1, momentum: 0.9}"],
    ["optimizer={name: torch.optim.Adagrad, lr: 0.1}"],
    ["optimizer.groups=[{pattern: '*.bias', lr: 0.1}]"],
    ["criterion={name: torch.nn.CrossEntropyLoss, label_smoothing: 0.1}"],
    ["criterion={name: dice, smooth: 2}"],
    ["trainer={name: gan, epochs: 1, noise_dim: 3}"],
    ["trainer.name=parts.GANTrainer"],
    ["scheduler={name: cosine, warmup_steps: 10}"],
    ["scheduler=null"],
    ["metrics={accuracy: {}, top5: {name: top_k_accuracy, k: 5}}"],
    ["tracking=[]"],
    ["tracking={tensorboard: {}}"],
    ["trainer.early_stopping={patience: 3}", "trainer.ema={}"],
    ["trainer.steps=100", "trainer.epochs=null"],
    ["data.batch_size_per_rank=3", "data.batch_size=null"],
    ["data.workers=2", "data.prefetch=4"],
    ["data.seed=3"],
    ["vars.width=10", "model.hidden_size=${vars.width}"],
    ["data.device_resident=auto"],
    ["data.device_resident=true"],
]


@pytest.mark.parametrize("overrides", RIGHT, ids=" ".join)
def test_what_is_right_is_not_refused(root: Path, overrides: list[str]) -> None:
    """A wrong alarm would keep a user from training."""
    assert problems(root, *overrides) == []


def test_a_package_that_is_not_installed_is_said_with_what_to_install(root: Path) -> None:
    """Advice to install is given only for names that are known: a mistyped one may be somebody's trap."""
    for name in ("timm.create_model", "torchvision.models.resnet18"):
        package = name.split(".")[0]
        if importlib.util.find_spec(package) is None:
            (found,) = problems(root, f"model={{name: {name}, num_classes: 3}}")
            assert f"{package} is not installed" in str(found) and "pip install" in str(found)
    (found,) = problems(root, "model={name: tiimm.create_model}")
    assert "pip install" not in str(found)


def test_workers_taken_back_on_the_command_line_are_no_fault_of_the_file(root: Path) -> None:
    """`data.workers=0` for a look with the debugger leaves `prefetch` unread, and that is meant."""
    text = WHOLE.replace("{name: numbers}", "{name: numbers, workers: 2, prefetch: 4}")
    assert problems(root, "data.workers=0", text=text) == []
    text = WHOLE.replace("{name: numbers}", "{name: numbers, workers: 0, prefetch: 4}")
    assert [problem.key for problem in problems(root, text=text)] == ["data.prefetch"]


def test_missing_sections_are_named(root: Path) -> None:
    """Data, model, criterion and trainer are what a run cannot do without."""
    found = problems(root, text="seed: 1\n")
    assert [problem.key for problem in found] == ["data", "model", "criterion", "trainer"]


def test_two_parts_of_one_name_are_a_problem_of_every_configuration(root: Path) -> None:
    """Which was meant cannot be known."""
    (root / "more.py").write_text(PARTS.replace("anything", "another"))
    assert any("registered here and at" in problem.message for problem in problems(root))


def test_a_file_that_cannot_be_read_is_named_when_a_part_is_missing(root: Path) -> None:
    """The part may be in it."""
    (root / "half.py").write_text("from flambeau import register\n@register.model('x'\n")
    assert problems(root) == []
    (found,) = problems(root, "model={name: x}")
    assert "half.py:2" in str(found)


def test_an_alias_of_the_project_to_a_refused_function_is_refused(root: Path) -> None:
    """A short name opens no way that an import path does not."""
    (root / "alias.py").write_text('from flambeau import register\nregister.alias("model", "innocent", "os.system")\n')
    (found,) = problems(root, "model={name: innocent}")
    assert "os.system" in str(found) and "standard library" in str(found)


@pytest.mark.parametrize(
    ("override", "key", "message"),
    [
        ("optimizer.groups=[{lr: 1}]", "optimizer.groups.0", "nothing says which parameters are meant"),
        ("optimizer.groups=[{ndim: 1, lr: 1, lr_factor: 2}]", "optimizer.groups.0", "both `lr` and `lr_factor`"),
        (
            "optimizer.groups=[{type: Linear, arguments: {beta: [0.5, 0.9]}}]",
            "optimizer.groups.0.arguments.beta",
            "takes no such argument",
        ),
        (
            "optimizer.groups=[{type: Linear, arguments: {betas: 0.5}}]",
            "optimizer.groups.0.arguments.betas",
            "expected a list of 2 values",
        ),
        ("optimizer.no_decay=[{patern: a}]", "optimizer.no_decay.0.patern", "unknown setting"),
        ("optimizer.lr_scaling=sqrt", "optimizer.lr_scaling", "only `lr_reference_batch` reads it"),
        ("trainer.clip=[{ndim: 1}]", "trainer.clip.0", "nothing says how to clip"),
        ("trainer={epochs: 3, stop_after_epochs: 4}", "trainer.stop_after_epochs", "the run has only 3 epochs"),
        ("scheduler={name: cosine, warmup_steps: 3, warmup_epochs: 1}", "scheduler.warmup_epochs", "both"),
        (
            "scheduler={name: piecewise, factors: [[1, 0], [0.1, 30]]}",
            "scheduler.factors.1.0",
            "expected an integer of at least 0, not 0.1",
        ),
        ("scheduler={name: piecewise, factors: [[1, 30]]}", "scheduler.factors.0.1", "of at most 1, not 30"),
        ("scheduler={name: phases, phases: [{epoch: 3}]}", "scheduler.phases.0.epoch", "unknown setting"),
        ("scheduler={name: phases, phases: [{lr_factor: -1}]}", "scheduler.phases.0.lr_factor", "of at least 0"),
        ("scheduler={name: cosine, total_steps: 3}", "scheduler.total_steps", "takes no such argument"),
        ("weight_decay_scheduler={name: cosin}", "weight_decay_scheduler.name", "no scheduler is called 'cosin'"),
    ],
)
def test_optimisation_is_checked_before_anything_is_imported(root: Path, override: str, key: str, message: str) -> None:
    """Groups, clipping and schedules, down to the numbers in their lists."""
    found = {problem.key: problem.message for problem in problems(root, override)}
    assert message in found[key]
