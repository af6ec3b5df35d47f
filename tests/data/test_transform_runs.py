"""Transforms in real runs: from the configuration to the model, checked before, and the same after a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.projects import CONFIG, InProcess, Project
from support.states import assert_same_runs

PARTS = '''

SEEN = {"train": [], "eval": []}


@register.transform("watch")
class Watch:
    """Notes what it sees; batches of training and of evaluation are told apart by the label."""

    def __init__(self, label: str, scale: float = 1.0) -> None:
        self.label, self.scale = label, scale

    def __call__(self, inputs):
        SEEN[self.label].append(inputs.clone())
        return inputs * self.scale


@register.transform("shaken")
def shaken(inputs, strength: float = 0.1):
    """Noise from torch's generator and numpy's."""
    return inputs + strength * (torch.randn(inputs.shape) + float(np.random.randn()))
'''

NOISY = """
train_transforms: {gaussian_noise: {std: 0.1}, shaken: {strength: 0.2}}
train_batch_transforms:
  shaken: {}
  mixup: {num_classes: "${data.num_classes}", alpha: 0.4}
  noise: {name: gaussian_noise, std: 0.1}
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The small project with transforms of its own."""
    return Project.write(tmp_path / "project", parts=PARTS, config=CONFIG + NOISY)


def test_random_transforms_of_samples_and_batches_go_on_to_the_same_bits(
    flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a stop in the middle of an epoch, with workers or without."""
    flambeau("train", "tiny", "--run-dir", "straight")
    monkeypatch.setenv("PREEMPT_AT", "17")
    flambeau("train", "tiny", "--run-dir", "run", "data.workers=1", expect=75)
    monkeypatch.delenv("PREEMPT_AT")
    flambeau("resume", "run", "data.workers=0")
    assert_same_runs(flambeau.project.root / "straight", flambeau.project.root / "run")


def test_each_section_has_its_place(flambeau: InProcess) -> None:
    """`eval_transforms` for evaluation alone, `batch_transforms` for both, `train_batch_transforms` for training."""
    sections = (
        "train_transforms={watch: {label: train}}",
        "eval_transforms={watch: {label: eval, scale: 10}}",
        "batch_transforms={watch: {label: eval}}",
        "train_batch_transforms=null",
    )
    flambeau("train", "tiny", "--run-dir", "run", "trainer.epochs=1", "trainer.dry_batch=false", *sections)
    module = __import__("sys").modules[flambeau.project.module]
    single = list(module.SEEN["train"])
    assert len(single) == 92 and all(seen.shape == (6,) for seen in single)
    evaluated = module.SEEN["eval"]
    assert len([seen for seen in evaluated if seen.dim() == 1]) == 31
    batches = [seen for seen in evaluated if seen.dim() == 2]
    assert sum(map(len, batches)) == 92 + 31
    assert max(batch.abs().max().item() for batch in batches) > 10
    module.SEEN["train"].clear()
    module.SEEN["eval"].clear()


def test_the_configuration_shows_what_is_applied(flambeau: InProcess) -> None:
    """The run's own copy keeps the order."""
    flambeau("train", "tiny", "--run-dir", "run", "trainer.steps=1", "trainer.epochs=null")
    saved = (flambeau.project.root / "run" / "config.yaml").read_text()
    assert saved.index("shaken") < saved.index("mixup") < saved.index("  noise:")
    listed = json.loads(flambeau("list", "transforms", "--json").out)["transforms"]
    own = {part["name"]: [argument["name"] for argument in part["arguments"]] for part in listed}
    assert own["shaken"] == ["strength"]
    assert {"mixup", "cutmix", "random_flip", "random_crop", "normalize", "resize"} <= own.keys()


def test_another_order_makes_the_run_another_one(flambeau: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise before mixing is not noise after it."""
    monkeypatch.setenv("PREEMPT_AT", "2")
    flambeau("train", "tiny", "--run-dir", "run", expect=75)
    other = (
        "train_batch_transforms={shaken: {}, noise: {name: gaussian_noise, std: 0.1}, "
        'mixup: {num_classes: "${data.num_classes}", alpha: 0.4}}'
    )
    answer = flambeau("resume", "run", other, expect=2)
    assert "train_batch_transforms (order)" in answer.err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train_transforms={random_flp: {}}", "did you mean 'random_flip'?"),
        ("train_transforms={random_flip: {q: 0.5}}", "random_flip takes no such argument"),
        ("train_transforms={random_flip: {p: 2}}", "of at most 1"),
        ("train_transforms={random_crop: {}}", "random_crop needs it"),
        ("train_transforms={shaken: {strenght: 2}}", "did you mean 'strength'?"),
        ("train_transforms={shaken: {inputs: 2}}", "shaken takes no such argument"),
        ("train_transforms={f: {name: torch.nn.functional.relu}}", "only classes are taken"),
        ("train_transforms={random_flip: {on: image}}", "no part of a sample"),
        ("train_transforms={mixup: {num_classes: 3}}", "put it under train_batch_transforms"),
        ("train_transforms=random_flip", "a mapping of names to arguments, or a list of names"),
    ],
)
def test_a_wrong_transform_never_trains(flambeau: InProcess, setting: str, message: str) -> None:
    """Names, arguments, types and places."""
    answer = flambeau("train", "tiny", "--run-dir", "run", setting, expect=2)
    assert message in answer.err


def test_a_list_of_names_will_do(flambeau: InProcess) -> None:
    """Where nothing has arguments; a class of torch's is had by its import path."""
    options = ("trainer.steps=1", "trainer.epochs=null", "train_batch_transforms=null")
    flambeau("train", "tiny", "--run-dir", "a", "train_transforms=[shaken]", *options)
    norm = "batch_transforms={norm: {name: torch.nn.LayerNorm, normalized_shape: 6}}"
    flambeau("train", "tiny", "--run-dir", "b", norm, "train_transforms=null", *options)
    flambeau("train", "tiny", "--run-dir", "c", "train_transforms=null", *options)
    records = [(flambeau.project.root / run / "metrics.jsonl").read_text() for run in "abc"]
    assert len(set(records)) == 3  # each of them changed what was trained on
