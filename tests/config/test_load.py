"""A loaded configuration: all problems at once, what it writes, what it keeps to itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flambeau.config import Config, Project
from flambeau.config.load import _map
from flambeau.config.origin import DEFAULT, Node, Origin, plain
from flambeau.config.project import SHIPPED
from flambeau.config.references import Surroundings, resolve
from flambeau.config.secrets import is_secret
from flambeau.config.yaml import read_file
from flambeau.errors import EXIT_USAGE, ConfigError, Problem

Write = Callable[[str, str], Path]
Load = Callable[..., Config]
Problems = Callable[..., list[Problem]]

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcxyz", min_size=1), inner, max_size=3),
    max_leaves=8,
)


def test_four_typos_are_four_problems_with_four_right_suggestions(write: Write, problems: Problems) -> None:
    """At every level, each at its line."""
    write(
        "mine",
        "base: base\nsede: 1\noptimizer: {name: torch.optim.AdamW, weigth_decay: 0.1}\n"
        "trainer:\n  erly_stopping: {patience: 3}\nmodel: {name: deep, dpeth: 2}\n",
    )
    found = problems("mine")
    assert [(problem.place, problem.key) for problem in found] == [
        ("configs/mine.yaml:2", "sede"),
        ("configs/mine.yaml:3", "optimizer.weigth_decay"),
        ("configs/mine.yaml:5", "trainer.erly_stopping"),
        ("configs/mine.yaml:6", "model.dpeth"),
    ]
    for problem, name in zip(found, ("seed", "weight_decay", "early_stopping", "depth"), strict=True):
        assert f"did you mean '{name}'?" in str(problem)


def test_problems_come_in_the_order_of_the_files(write: Write, problems: Problems) -> None:
    """Bases first, then the file, line by line, then environment and command line; each once."""
    write("lower", "base: base\ntrainer:\n  epochs: x\n  epochz: 1\n")
    write("mine", "base: lower\nmodel: {width: x}\nseed: ${env:NOT_SET_ANYWHERE}\nseed: 3\n")
    found = problems("mine", "data.count=x", environ={"FLAMBEAU__OPTIMIZER__LR": "x"})
    assert [problem.place for problem in found] == [
        "configs/lower.yaml:3",
        "configs/lower.yaml:4",
        "configs/mine.yaml:2",
        "configs/mine.yaml:3",
        "configs/mine.yaml:4",
        "FLAMBEAU__OPTIMIZER__LR",
        "command line",
    ]


def test_the_error_counts_and_lists_and_has_the_status_of_wrong_usage(load: Load) -> None:
    """Its text is what the command prints."""
    with pytest.raises(ConfigError) as caught:
        load("base", "seed=x", "model.width=y")
    assert caught.value.exit_status == EXIT_USAGE
    assert str(caught.value).splitlines()[0] == "2 problems in the configuration:"
    assert len(str(caught.value).splitlines()) == 3


def test_every_section_entry_and_leaf_has_an_origin(write: Write, load: Load) -> None:
    """Also what came through a reference, which points to where the value itself was written."""
    write("mine", "base: base\nvars:\n  groups: [{pattern: a}]\noptimizer:\n  groups: ${vars.groups}\n")
    config = load("mine")
    assert str(config.origins["optimizer.groups"]) == "configs/mine.yaml:5"
    assert str(config.origins["optimizer.groups.0.pattern"]) == "configs/mine.yaml:3"
    paths: set[str] = set()
    _map(config.values, lambda value, key: paths.add(key))
    assert paths <= config.origins.keys()
    assert config.origin("optimizer.groups.0.lr") == config.origins["optimizer.groups.0"]
    assert config.origin("nothing.here") is None


def test_a_section_is_a_copy(load: Load) -> None:
    """Changing it does not change the configuration."""
    config = load("base")
    config.section("trainer")["epochs"] = 9
    assert config.values["trainer"]["epochs"] == 2
    assert config.section("checkpoint") == {}


# --- writing -----------------------------------------------------------------------------------------------------


def reload(config: Config, load: Load, folder: Path, **environ: str) -> Config:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    return load(str(folder / "config.yaml"), environ=environ)


def test_what_is_written_loads_to_the_same_values(write: Write, load: Load, tmp_path: Path) -> None:
    """Bases, overrides, references and `vars` included; nothing is said that was not set."""
    write(
        "mine",
        "base: base\nvars: {w: 0.5, unit: px}\nmodel: {width: '${vars.w}', note: 'a $${x} ${vars.unit}'}\n"
        "optimizer: {lr: 1e-5, groups: [{pattern: '*.bias', weight_decay: 0}]}\ntracking: {notebook: {}}\n",
    )
    config = load("mine", "data.count=${seed}", environ={"FLAMBEAU__TRAINER__EMA": "{decay: 0.9}"})
    again = reload(config, load, tmp_path / "run")
    assert again.values == config.values
    assert list(again.values) == ["seed", "vars", *list(again.values)[2:]]
    assert "base:" not in config.to_yaml()
    assert "log_every" not in config.to_yaml()
    assert again.to_yaml() == config.to_yaml()


def test_references_to_the_environment_and_to_the_data_stay_references(
    write: Write, load: Load, tmp_path: Path
) -> None:
    """No value of the environment is written, by whatever way it came to its place."""
    write(
        "mine",
        "base: base\ndata: {folder: '${env:FOLDER}/digits', token: '${vars.all.token}'}\n"
        "vars: {all: {token: '${env:TOKEN}'}}\nmodel: {num_classes: '${data.num_classes}', note: '${data.folder}'}\n",
    )
    environ = {"FOLDER": "/scratch/me", "TOKEN": "hunter2"}
    config = load("mine", environ=environ)
    assert config.values["data"]["token"] == "hunter2"
    assert config.values["model"]["note"] == "/scratch/me/digits"
    text = config.to_yaml()
    assert "hunter2" not in text
    assert "/scratch" not in text
    assert reload(config, load, tmp_path / "run", **environ).values == config.values
    assert "hunter2" not in str(config.written())


def test_a_secret_given_by_its_variable_is_not_written(write: Write, load: Load, tmp_path: Path) -> None:
    """`FLAMBEAU__TRACKING__NOTEBOOK__API_KEY` is written as a reference to that variable."""
    write("mine", "base: base\ntracking: [notebook]\n")
    environ = {"FLAMBEAU__TRACKING__NOTEBOOK__API_KEY": "hunter2", "FLAMBEAU__SEED": "4"}
    config = load("mine", environ=environ)
    assert config.values["tracking"] == {"notebook": {"api_key": "hunter2"}}
    assert "hunter2" not in config.to_yaml()
    assert config.written()["seed"] == 4
    assert reload(config, load, tmp_path / "run", **environ).values == config.values


def test_a_secret_that_is_written_out_is_a_problem_and_not_repeated(write: Write, problems: Problems) -> None:
    """In a file or on the command line; and a message about it does not hold it."""
    write("mine", "base: base\ndata: {token: hunter2}\n")
    found = problems("mine", "tracking={notebook: {api_key: hunter3}}")
    assert [(problem.place, problem.key) for problem in found] == [
        ("configs/mine.yaml:2", "data.token"),
        ("command line", "tracking.notebook.api_key"),
    ]
    assert all("environment" in str(problem) and "hunter" not in str(problem) for problem in found)
    (wrong_type,) = problems("base", "model.width=${env:API_TOKEN}", environ={"API_TOKEN": "hunter4"})
    assert wrong_type.key == "model.width"
    assert "hunter4" not in str(wrong_type)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("tracking.wandb.api_key", True),
        ("HF_TOKEN", True),
        ("data.password", True),
        ("model.accessToken", True),
        ("private-key", True),
        ("model.pad_token", False),
        ("model.num_tokens", False),
        ("data.key", False),
        ("tokenizer", False),
        ("secret.name", False),
    ],
)
def test_secrets_are_known_by_the_last_word_of_their_key(key: str, expected: bool) -> None:
    """A vocabulary's tokens and a number of tokens are none."""
    assert is_secret(key) is expected


@given(values=st.dictionaries(st.sampled_from(["model", "data", "vars"]), VALUES))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_values_are_written_so_that_they_read_back(values: dict[str, Any], project: Project) -> None:
    """Text that looks like a reference, a number or a truth value included."""
    config = Config("any", values, {}, [], project)
    path = project.root / "any.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    problems: list[Problem] = []
    node = read_file(path, problems)
    assert not problems
    assert node is not None
    assert isinstance(node.value, dict)
    resolved = resolve(node.value, Surroundings({}, frozenset, lambda _: {}), problems)
    assert not problems
    assert plain(Node(resolved.root, DEFAULT)) == values


# --- alone -------------------------------------------------------------------------------------------------------


def test_loading_imports_neither_torch_nor_the_project(write: Write, project: Project) -> None:
    """Checked in a process of its own, on a configuration that names torch's parts and the project's."""
    (project.root / "parts.py").write_text((project.root / "parts.py").read_text() + "\nraise SystemExit(3)\n")
    write("mine", "base: base\noptimizer: {name: torch.optim.SGD, momentum: 0.9}\n")
    code = (
        "import sys; from flambeau.config import load_config; load_config('mine');"
        "print([name for name in ('torch', 'numpy', 'rich', 'parts') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project.root, env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("[]", "", 0)


def test_an_origin_is_shown_as_its_place() -> None:
    """`str(origin)` goes into messages."""
    assert str(Origin.file(Path("configs/a.yaml"), 3)) == "configs/a.yaml:3"
    assert str(Origin.file(Path("/nowhere/a.yaml"), 3)) == "/nowhere/a.yaml:3"


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_configurations_load(path: Path, load: Load) -> None:
    """Each is right as it is; `default`, on which they stand, lacks what only they can say, and nothing else."""
    try:
        assert load(path.stem).name == path.stem
    except ConfigError as error:
        assert path.stem == "default"
        assert {problem.key for problem in error.problems} == {"data", "model", "criterion"}
