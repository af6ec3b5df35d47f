"""Layers of a configuration: bases, environment, command line, and the rules by which later ones win."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flambeau.config import Config, Project, find_project
from flambeau.config.merge import Report, assign, merge_file
from flambeau.config.origin import COMMAND_LINE, Key, Node, Origin, plain
from flambeau.errors import Problem

Write = Callable[[str, str], Path]
Load = Callable[..., Config]
Problems = Callable[..., list[Problem]]


# --- bases ---------------------------------------------------------------------------------------------------


def test_later_bases_win_and_the_file_itself_wins_over_them(write: Write, load: Load) -> None:
    """`base: [a, b]`: b over a, the file over both."""
    write("a", "base: base\nseed: 1\ntrainer: {epochs: 11, log_every: 12}\n")
    write("b", "seed: 2\ntrainer: {epochs: 21}\n")
    write("mine", "base: [a, b]\nseed: 3\n")
    config = load("mine")
    assert config.values["seed"] == 3
    assert config.values["trainer"] == {"epochs": 21, "log_every": 12}
    assert [path.stem for path in config.sources] == ["base", "a", "b", "mine"]
    assert config.name == "mine"


def test_what_two_bases_have_in_common_lies_below_both(write: Write, load: Load) -> None:
    """A base that is reached twice applies once, so it does not undo what the first base says."""
    write("a", "base: base\ntrainer: {epochs: 7}\n")
    write("b", "base: base\nseed: 5\n")
    write("mine", "base: [a, b]\n")
    assert load("mine").values["trainer"]["epochs"] == 7


def test_a_base_is_looked_for_beside_the_file_first(write: Write, load: Load) -> None:
    """Then among the project's configurations."""
    write("near", "seed: 1\n")
    write("experiments/near", "base: base\nseed: 2\n")
    write("experiments/mine", "base: near\n")
    assert load("experiments/mine").values["seed"] == 2
    write("experiments/other", "base: [base, ../near]\n")
    assert load("experiments/other").values["seed"] == 1


def test_a_project_can_inherit_from_a_shipped_configuration_of_the_same_name(write: Write, project: Project) -> None:
    """`configs/default.yaml` with `base: default` stands on Flambeau's own."""
    from flambeau.config.bases import read_files

    mine = write("default", "base: default\nseed: 9\n")
    problems: list[Problem] = []
    files = read_files("default", project, problems)
    assert not problems
    assert [path.parent.parent.name for path, _ in files.layers] == ["flambeau", project.root.name]
    assert files.layers[-1][0] == mine


@pytest.mark.parametrize("name", ["configs/mine.yaml", "./configs/mine.yaml", "mine", "mine.yaml"])
def test_a_configuration_is_a_name_or_a_file(name: str, write: Write, load: Load) -> None:
    """A folder `mine` beside it does not matter."""
    path = write("mine", "base: base\n")
    (path.parents[1] / "mine").mkdir()
    assert load(name).sources[-1].samefile(path)


def test_a_missing_configuration_names_the_nearest(problems: Problems, write: Write) -> None:
    """And says where it was looked for."""
    write("resnet", "base: base\n")
    (problem,) = problems("resnte")
    assert problem.suggestion == "did you mean 'resnet'?"
    assert "configs" in problem.message


def test_a_missing_base_is_reported_with_its_line_and_nothing_is_blamed_on_it(problems: Problems, write: Write) -> None:
    """What seems missing may stand in the missing file; what is wrong by itself is reported."""
    write("mine", "base:\n  - bsae\ntrainer: {epochs: x, erly_stopping: 1}\nseed: ${vars.a}\nmetrics: {hits: null}\n")
    found = problems("mine")
    assert [problem.key for problem in found] == ["base", "trainer.epochs", "trainer.erly_stopping"]
    assert found[0].place == "configs/mine.yaml:2"
    assert found[0].suggestion == "did you mean 'base'?"


def test_a_circle_of_bases_is_reported_where_it_closes(problems: Problems, write: Write) -> None:
    """With the way round."""
    write("a", "base: b\n")
    write("b", "seed: 1\nbase: a\n")
    found = problems("a")
    assert found[0].place == "configs/b.yaml:2"
    assert "configs/a.yaml -> configs/b.yaml -> configs/a.yaml" in found[0].message


def test_a_file_that_inherits_from_itself_is_told_so(problems: Problems, write: Write) -> None:
    """There is no other file of that name."""
    write("mine", "base: mine\n")
    assert any("inherits from itself" in problem.message for problem in problems("mine"))


def test_a_broken_base_is_reported_together_with_other_faults(problems: Problems, write: Write) -> None:
    """A syntax error in one file does not hide a typo in another."""
    write("broken", "a: [1,\n")
    write("mine", "base: [base, broken]\nsede: 1\n")
    found = problems("mine", "optimizer.lr=x")
    assert {problem.key for problem in found} == {"", "sede", "optimizer.lr"}


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "..", "configs"])
def test_a_name_that_no_file_can_have_is_a_missing_configuration(name: str, problems: Problems) -> None:
    """No matter what the operating system says of it."""
    (problem,) = problems(name)
    assert "no configuration of this name" in problem.message


@pytest.mark.parametrize("base", ["{a: 1}", "[1]", "3", "[[base]]"])
def test_base_is_a_name_or_a_list_of_names(base: str, problems: Problems, write: Write) -> None:
    """Anything else is a problem of its line."""
    write("mine", f"base: {base}\n")
    assert ("configs/mine.yaml:1", "base") in [(problem.place, problem.key) for problem in problems("mine")]


# --- merging -------------------------------------------------------------------------------------------------


def test_another_name_starts_a_parts_arguments_anew(write: Write, load: Load) -> None:
    """The width of one model never reaches another."""
    write("lower", "base: base\nmodel: {name: wide, width: 2.0, num_classes: 4}\n")
    write("mine", "base: lower\nmodel: {name: deep, depth: 2}\n")
    assert load("mine").values["model"] == {"name": "deep", "depth": 2}


def test_the_same_name_keeps_a_parts_arguments(write: Write, load: Load) -> None:
    """Saying the name again changes nothing."""
    write("lower", "base: base\nmodel: {name: wide, width: 2.0}\n")
    write("mine", "base: lower\nmodel: {name: wide, num_classes: 5}\n")
    assert load("mine").values["model"] == {"name": "wide", "width": 2.0, "num_classes": 5}


def test_another_name_keeps_what_the_engine_reads_itself(write: Write, load: Load) -> None:
    """Parameter groups and the batch size belong to the engine, not to the optimizer or the data."""
    write("lower", "base: base\noptimizer: {name: plain, lr: 1.0, momentum: 0.9, no_decay: true}\n")
    write("mine", "base: lower\noptimizer: {name: fancy}\n")
    assert load("mine").values["optimizer"] == {"name": "fancy", "no_decay": True}


def test_a_name_after_the_default_part_starts_its_arguments_anew(write: Write, load: Load) -> None:
    """A section without a name means the default part, adamw."""
    write("lower", "base: base\noptimizer: null\n")
    write("middle", "base: lower\noptimizer: {weight_decay: 0.1}\n")
    write("mine", "base: middle\noptimizer: {name: fancy}\n")
    assert load("mine").values["optimizer"] == {"name": "fancy"}


def test_null_takes_away_a_section(write: Write, load: Load) -> None:
    """From a file, the environment or the command line."""
    write("lower", "base: base\nmetrics: {hits: {}}\ntracking: [notebook]\nscheduler: {name: constant}\n")
    write("mine", "base: lower\nmetrics: null\n")
    config = load("mine", "tracking=null", environ={"FLAMBEAU__SCHEDULER": "null"})
    assert config.values.keys() & {"metrics", "tracking", "scheduler"} == set()


def test_null_takes_away_a_metric_and_a_tracker(write: Write, load: Load) -> None:
    """A label set to null is gone; the others stay."""
    write("lower", "base: base\nmetrics: {hits: {}, top: {name: hits, k: 5}}\ntracking: [notebook]\n")
    write("mine", "base: lower\nmetrics: {hits: null}\n")
    config = load("mine", "tracking.notebook=null")
    assert config.values["metrics"] == {"top": {"name": "hits", "k": 5}}
    assert config.values["tracking"] == {}


def test_taking_away_what_is_not_there_is_a_problem(problems: Problems, write: Write) -> None:
    """`hist: null` was meant for `hits`."""
    write("mine", "base: base\nmetrics: {hits: {}}\n")
    (problem,) = problems("mine", "metrics.hist=null")
    assert (problem.place, problem.key) == ("command line", "metrics.hist")
    assert problem.suggestion == "did you mean 'hits'?"


def test_an_empty_section_or_label_is_a_problem(problems: Problems, write: Write) -> None:
    """`trainer:` with all its lines commented out would silently take away what the bases say."""
    write("mine", "base: base\ntrainer:\n#  epochs: 3\nmetrics:\n  hits:\n")
    found = {problem.key: problem for problem in problems("mine")}
    assert found["trainer"].place == "configs/mine.yaml:2"
    assert "`hits: {}`" in (found["metrics.hits"].suggestion or "")


def test_a_list_of_trackers_can_be_refined_by_a_later_layer(write: Write, load: Load) -> None:
    """`[notebook]` is short for `{notebook: {}}`."""
    write("lower", "base: base\ntracking: [notebook]\n")
    write("mine", "base: lower\ntracking: {notebook: {every: 2}}\n")
    assert load("mine").values["tracking"] == {"notebook": {"every": 2}}
    assert load("lower", "tracking.notebook.every=3").values["tracking"] == {"notebook": {"every": 3}}


LEAVES = st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
TREES = st.dictionaries(
    st.sampled_from("abc"),
    st.recursive(LEAVES, lambda inner: st.dictionaries(st.sampled_from("xyz"), inner, max_size=3), max_leaves=6),
    max_size=3,
)


def node_of(value: Any) -> Node:
    if isinstance(value, dict):
        return Node({key: node_of(child) for key, child in value.items()}, COMMAND_LINE)
    if isinstance(value, list):
        return Node([node_of(child) for child in value], COMMAND_LINE)
    return Node(value, COMMAND_LINE)


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    root: dict[Key, Node] = {}
    for layer in layers:
        mapping = node_of(copy.deepcopy(layer)).value
        assert isinstance(mapping, dict)
        merge_file(root, mapping, Report([]))
    result: dict[str, Any] = plain(Node(root, COMMAND_LINE))
    return result


@given(TREES, TREES, TREES)
def test_merging_is_associative(first: dict[str, Any], second: dict[str, Any], third: dict[str, Any]) -> None:
    """Two bases in a row are the same as one base that holds both, if none of them turns a value into a mapping.

    A value between two mappings makes the later one start anew, whichever two are merged first.
    """
    together = merged(first, second, third)
    assert merged(merged(first, second), third) == together
    if same_shape(first, second, third):
        assert merged(first, merged(second, third)) == together


def same_shape(*trees: Any) -> bool:
    """Whether no key is a mapping in one tree and a value in another."""
    mappings = [tree for tree in trees if isinstance(tree, dict)]
    if len(mappings) not in (0, len(trees)):
        return False
    keys = {key for tree in mappings for key in tree}
    return all(same_shape(*(tree[key] for tree in mappings if key in tree)) for key in keys)


@given(TREES)
def test_merging_with_itself_or_with_nothing_changes_nothing(tree: dict[str, Any]) -> None:
    """Idempotent, with the empty layer as neutral element on both sides."""
    assert merged(tree, tree) == merged(tree, {}) == merged({}, tree) == tree


@given(TREES, st.lists(st.sampled_from("abxyz"), min_size=1, max_size=4), LEAVES)
def test_an_assigned_value_is_there_and_nothing_else_changes(tree: dict[str, Any], path: list[str], leaf: Any) -> None:
    """Setting a dotted key touches that key alone, or is reported."""
    root = {key: node_of(value) for key, value in tree.items()}
    problems: list[Problem] = []
    assign(root, path, node_of(leaf), Report(problems))  # type: ignore[arg-type]
    after = plain(Node(root, COMMAND_LINE))  # type: ignore[arg-type]
    if problems:
        return
    before: Any = copy.deepcopy(tree)
    here = after
    for word in path[:-1]:
        here = here[word]
    assert here.pop(path[-1]) == leaf
    there = before
    for word in path[:-1]:
        there = there.get(word, {})
    there.pop(path[-1], None)
    assert without_empty(after) == without_empty(before)


def without_empty(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: kept for key, child in value.items() if (kept := without_empty(child)) != {}}


# --- environment and command line ------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_environment_and_that_over_files(write: Write, load: Load) -> None:
    """Each value says which of them it came from."""
    write("mine", "base: base\nseed: 1\n")
    environ = {"FLAMBEAU__SEED": "2", "FLAMBEAU__OPTIMIZER__LR": "3e-4", "FLAMBEAU_OTHER": "x"}
    config = load("mine", "seed=3", environ=environ)
    assert config.values["seed"] == 3
    assert config.values["optimizer"]["lr"] == 3e-4
    assert config.origins["seed"] == Origin("command line", "command line")
    assert config.origins["optimizer.lr"] == Origin("environment", "FLAMBEAU__OPTIMIZER__LR")
    assert str(config.origins["trainer.epochs"]) == "configs/base.yaml:6"
    assert str(config.origins["optimizer"]) == "configs/base.yaml:5"


def test_whole_sections_and_lists_are_replaced(load: Load) -> None:
    """`model={...}` leaves nothing of what was there."""
    config = load("base", "model={name: deep, depth: 1}", "tracking=[notebook]", "data={name: blobs}")
    assert config.values["model"] == {"name": "deep", "depth": 1}
    assert config.values["tracking"] == ["notebook"]
    assert config.values["data"] == {"name": "blobs"}


@pytest.mark.parametrize("overrides", [("model.name=deep", "model.depth=7"), ("model.depth=7", "model.name=deep")])
def test_a_new_name_and_its_arguments_can_be_given_in_any_order(overrides: tuple[str, ...], load: Load) -> None:
    """The name drops the arguments of the files, not those beside it on the command line."""
    assert load("base", *overrides).values["model"] == {"name": "deep", "depth": 7}


def test_a_new_name_on_the_command_line_drops_the_files_arguments(write: Write, load: Load) -> None:
    """In a section of one part and under a label alike, nested arguments included."""
    write(
        "mine",
        "base: base\nmodel: {name: wide, width: 2.0}\noptimizer: {lr: 1, momentum: 0.5, no_decay: true}\n"
        "metrics: {top: {name: hits, k: 3}}\n",
    )
    config = load("mine", "model.name=deep", "optimizer.name=fancy", "metrics.top.name=torchmetrics.MeanMetric")
    assert config.values["model"] == {"name": "deep"}
    assert config.values["optimizer"] == {"name": "fancy", "no_decay": True}
    assert config.values["metrics"]["top"] == {"name": "torchmetrics.MeanMetric"}


def test_an_entry_of_a_list_is_set_by_its_index(write: Write, load: Load, problems: Problems) -> None:
    """An index that is not there is a problem."""
    write("mine", "base: base\noptimizer: {groups: [{pattern: a, lr: 1}, {pattern: b}]}\n")
    config = load("mine", "optimizer.groups.1.lr=0.5", "optimizer.groups.0={pattern: c}")
    assert config.values["optimizer"]["groups"] == [{"pattern": "c"}, {"pattern": "b", "lr": 0.5}]
    (problem,) = problems("mine", "optimizer.groups.2.lr=1")
    assert "no index into a list of 2" in problem.message


def test_sections_on_the_way_are_made(load: Load) -> None:
    """Also where the value so far is null."""
    assert load("base", "trainer.ema.decay=0.9").values["trainer"]["ema"] == {"decay": 0.9}
    assert load("base", "trainer.ema=null", "trainer.ema.decay=0.9").values["trainer"]["ema"] == {"decay": 0.9}


@pytest.mark.parametrize(
    ("override", "key", "says"),
    [
        ("seed", "seed", "write `key=value`"),
        ("=3", "=3", "write `key=value`"),
        ("seed=", "seed", "has no value"),
        ("seed= ", "seed", "has no value"),
        ("optimizer..lr=1", "optimizer..lr", "no dotted key"),
        ("seed.x=1", "seed.x", "single value (configs/base.yaml:1)"),
        ("tracking+=[a]", "tracking", "`tracking=[...]`"),
        ("base=[x]", "base", "only be set in a file"),
        ("model={name: wide", "model", "not valid YAML"),
        ("seed=" + "9" * 5000, "seed", "whole number"),
        ("optimiser.lr=1", "optimiser", "did you mean 'optimizer'"),
    ],
)
def test_a_bad_override_is_reported_as_of_the_command_line(
    override: str, key: str, says: str, problems: Problems
) -> None:
    """With its key and the remedy."""
    (problem,) = problems("base", override)
    assert (problem.place, problem.key) == ("command line", key)
    assert says in str(problem)


def test_a_fault_of_the_environment_names_the_variable(problems: Problems) -> None:
    """Unknown keys, wrong types and bad YAML alike."""
    environ = {
        "FLAMBEAU__SEDE": "1",
        "FLAMBEAU__TRAINER__EPOCHS": "many",
        "FLAMBEAU__TRACKING": "[a",
        "FLAMBEAU__": "1",
    }
    assert {problem.place for problem in problems("base", environ=environ)} == set(environ)


def test_capitals_in_a_variable_find_the_key_of_any_case(write: Write, load: Load) -> None:
    """The environment is in capitals by custom; small letters are taken as they are."""
    write("mine", "base: base\nmodel: {name: deep, rates: {Head: 0.1}}\noptimizer: {groups: [{pattern: x}]}\n")
    environ = {
        "FLAMBEAU__MODEL__RATES__HEAD": "0.2",
        "FLAMBEAU__MODEL__RATES__Tail": "0.3",
        "FLAMBEAU__OPTIMIZER__GROUPS__0__LR": "0.5",
        "FLAMBEAU__RUNS_DIR": "elsewhere",
    }
    config = load("mine", environ=environ)
    assert config.values["model"]["rates"] == {"Head": 0.2, "Tail": 0.3}
    assert config.values["optimizer"]["groups"] == [{"pattern": "x", "lr": 0.5}]
    assert config.values["runs_dir"] == "elsewhere"


# --- project ---------------------------------------------------------------------------------------------------


def test_the_project_is_the_nearest_folder_with_configurations(tmp_path: Path) -> None:
    """Or with a table [tool.flambeau]; else the folder itself."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert find_project(inner).root == inner
    (tmp_path / "pyproject.toml").write_text("[tool.other]\nx = '[tool.flambeau]'\n")
    assert find_project(inner).root == inner
    (tmp_path / "pyproject.toml").write_text("[tool.flambeau]\n")
    assert find_project(inner).root == tmp_path
    (tmp_path / "a" / "configs").mkdir()
    assert find_project(inner).root == tmp_path / "a"


def test_the_home_folder_is_no_project_of_everything_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `~/configs` of something else does not make all of home a project."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "configs").mkdir()
    inner = tmp_path / "work"
    inner.mkdir()
    assert find_project(inner).root == inner
    assert find_project(tmp_path).root == tmp_path


def test_activating_a_project_makes_its_modules_importable(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root, and `src/` where the modules lie there."""
    import sys

    (project.root / "src").mkdir()
    monkeypatch.setattr(sys, "path", list(sys.path))
    project.activate()
    project.activate()
    assert sys.path.count(str(project.root)) == 1
    assert sys.path.count(str(project.root / "src")) == 1
