"""References between values, to the environment and to what only the built data knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flambeau.config import Config
from flambeau.config.origin import DEFAULT, Key, Node, plain
from flambeau.config.references import Resolved, Surroundings, escape, fill, resolve
from flambeau.errors import ConfigError, Problem

Write = Callable[[str, str], Path]
Load = Callable[..., Config]
Problems = Callable[..., list[Problem]]


def resolved(values: dict[str, object], **environ: str) -> tuple[dict[str, object], list[Problem], Resolved]:
    """The values with their references followed, what is wrong, and what is known of them."""

    def node(value: object) -> Node:
        if isinstance(value, dict):
            return Node({key: node(child) for key, child in value.items()}, DEFAULT)
        if isinstance(value, list):
            return Node([node(child) for child in value], DEFAULT)
        assert value is None or isinstance(value, str | int | float)
        return Node(value, DEFAULT)

    root: dict[Key, Node] = {key: node(value) for key, value in values.items()}
    problems: list[Problem] = []
    result = resolve(root, Surroundings(environ, lambda: frozenset({"num_classes"}), lambda _: {}), problems)
    return plain(Node(result.root, DEFAULT)), problems, result


def test_a_text_that_is_one_reference_takes_the_value_with_its_type() -> None:
    """Numbers, null, lists and whole mappings."""
    values, problems, _ = resolved(
        {"a": 0.5, "b": "${a}", "c": [1, {"d": None}], "e": "${c}", "f": "${c.1}", "g": "${ c.1.d }"}
    )
    assert not problems
    assert values == {"a": 0.5, "b": 0.5, "c": [1, {"d": None}], "e": [1, {"d": None}], "f": {"d": None}, "g": None}


def test_references_within_a_text_are_written_into_it() -> None:
    """As YAML would write them."""
    values, problems, _ = resolved({"a": 3, "b": True, "c": None, "d": 1e-3, "e": "x${a}-${b}-${c}-${d}"})
    assert not problems
    assert values["e"] == "x3-true-null-0.001"


def test_references_to_references_are_followed() -> None:
    """Also through a section that is itself a reference."""
    values, problems, _ = resolved({"vars": {"m": {"w": "${a}"}}, "model": "${vars.m}", "a": 1, "b": "${model.w}"})
    assert not problems
    assert values["model"] == {"w": 1}
    assert values["b"] == 1


def test_a_mapping_may_refer_to_itself_in_parts() -> None:
    """`optimizer.groups.0.lr` from `optimizer.lr` is no circle."""
    values, problems, _ = resolved({"o": {"lr": 2, "groups": [{"lr": "${o.lr}"}]}})
    assert not problems
    assert values == {"o": {"lr": 2, "groups": [{"lr": 2}]}}


@given(st.text())
def test_an_escaped_text_means_itself(text: str) -> None:
    """`$${` is a plain `${`, whatever stands around it."""
    values, problems, result = resolved({"a": escape(text), "b": "${a}"})
    assert not problems
    assert values == {"a": text, "b": text}
    assert not result.deferred


def test_the_environment_is_read_with_types_and_defaults() -> None:
    """As the command line reads values; a default may hold colons; a variable that is set may be empty."""
    values, problems, _ = resolved(
        {
            "number": "${env:N}",
            "text": "n${env:N}",
            "default": "${env:NOT:3e-4}",
            "address": "${env:NOT:http://host:80}",
            "nothing": "${env:NOT:}",
            "empty": "${env:EMPTY:x}",
            "list": "${env:LIST}",
        },
        N="07",
        EMPTY="",
        LIST="[1",
    )
    assert not problems
    assert values == {
        "number": 7,
        "text": "n07",
        "default": 3e-4,
        "address": "http://host:80",
        "nothing": "",
        "empty": "",
        "list": "[1",
    }


def test_all_missing_variables_are_reported_together() -> None:
    """Each once, with its remedy."""
    _, problems, _ = resolved({"a": "${env:ONE}", "b": "x${env:TWO}", "c": "${a}"})
    assert [problem.key for problem in problems] == ["a", "b"]
    assert "ONE is not set" in problems[0].message
    assert "`${env:TWO:...}`" in (problems[1].suggestion or "")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("${nowhere.x}", "refers to nothing"),
        ("${somewher.x}", "did you mean 'somewhere.x'?"),
        ("${somewhere.y}", "did you mean 'somewhere.x'?"),
        ("${data.num_clases}", "did you mean 'data.num_classes'?"),
        ("${somewhere.x.deeper}", "refers to nothing"),
        ("${}", "no reference"),
        ("${a..b}", "no reference"),
        ("${oc.env:HOME}", "`${env:NAME}`"),
        ("${env:}", "no name of an environment variable"),
        ("${env:A-B}", "no name of an environment variable"),
        ("open ${somewhere.x", "not closed"),
        ("${somewhere.${x}}", "not closed"),
        ("text ${somewhere}", "mapping and cannot stand within a text"),
    ],
)
def test_a_reference_that_leads_nowhere_is_reported(text: str, says: str) -> None:
    """With the nearest right name where there is one; the value keeps its text."""
    values, problems, result = resolved({"somewhere": {"x": 1}, "a": text})
    assert len(problems) == 1
    assert problems[0].key == "a"
    assert says in str(problems[0])
    assert result.failed == {"a"}
    assert values["a"] == text


@pytest.mark.parametrize(
    "values",
    [
        {"a": "${a}"},
        {"a": "${b}", "b": "x${c}", "c": "${a}"},
        {"a": {"b": "${a}"}},
        {"x": "${a}", "a": "${b}", "b": "${a}"},
        {"x": ["${a.b}"], "a": {"b": "${x}"}},
        {"a": "${b.x}", "b": "${a.x}"},
    ],
)
def test_a_circle_is_reported_once_and_ends(values: dict[str, object]) -> None:
    """Whichever value is looked at first, and however many lead into it."""
    _, problems, _ = resolved(values)
    assert problems
    assert sum("circle" in problem.message for problem in problems) <= 1


def test_references_cannot_multiply_without_bound() -> None:
    """Twenty lines that stand for 10^20 values are refused."""
    values: dict[str, object] = {"a0": ["x"] * 10}
    values |= {f"a{i}": [f"${{a{i - 1}}}"] * 10 for i in range(1, 20)}
    _, problems, _ = resolved(values)
    assert any("more than" in problem.message for problem in problems)


def test_what_only_the_built_data_knows_waits_for_it() -> None:
    """It stays text; what else stands in the same text is filled in at once."""
    values, problems, result = resolved(
        {
            "data": {"name": "x"},
            "n": 5,
            "a": "${data.num_classes}",
            "b": "$${n} is ${n}, classes ${data.num_classes}",
            "c": "${a}",
            "d": {"e": "${data.num_classes}"},
            "f": "${d}",
        }
    )
    assert not problems
    assert result.deferred == {"a", "b", "c", "d.e", "f.e"}
    assert values["c"] == "${data.num_classes}"
    assert fill(str(values["a"]), {"num_classes": 3}.__getitem__) == 3
    assert fill(str(values["b"]), {"num_classes": 3}.__getitem__) == "${n} is 5, classes 3"


def test_data_cannot_wait_for_itself() -> None:
    """An argument of the data cannot be what is known once the data is built."""
    _, problems, _ = resolved({"data": {"name": "x", "count": "${data.num_classes}"}})
    assert "known only when the data is built" in problems[0].message


# --- in whole configurations -----------------------------------------------------------------------------------


def test_an_attribute_of_the_data_part_is_found_in_its_source(write: Write, load: Load) -> None:
    """`Blobs.__init__` sets num_classes, so `${data.num_classes}` is no mistake, and the built object gives it."""
    write("mine", 'base: base\nmodel: {num_classes: "${data.num_classes}"}\n')
    config = load("mine")
    assert config.deferred == {"model.num_classes"}
    assert config.with_data(SimpleNamespace(num_classes=3))["model"]["num_classes"] == 3
    assert config.values["model"]["num_classes"] == "${data.num_classes}"


def test_an_attribute_that_the_built_data_lacks_is_an_error_with_its_place(write: Write, load: Load) -> None:
    """All of them at once."""
    write("mine", "base: base\nmodel: {num_classes: '${data.num_classes}', note: 'n${data.num_classes}'}\n")
    with pytest.raises(ConfigError) as caught:
        load("mine").with_data(SimpleNamespace())
    places = [(problem.place, problem.key) for problem in caught.value.problems]
    assert sorted(places, key=str) == [
        ("configs/mine.yaml:2", "model.note"),
        ("configs/mine.yaml:2", "model.num_classes"),
    ]


def test_a_default_can_be_referred_to(write: Write, load: Load) -> None:
    """Of the engine's settings, of the parts' arguments and of the top level."""
    write(
        "mine",
        "base: base\ndata: {count: '${data.eval_batch_size}'}\nmodel:\n  num_classes: ${trainer.log_every}\n"
        "  sizes: ['${data.workers}', '${seed}']\n  note: ${runs_dir}\n  width: ${optimizer.momentum}\n",
    )
    config = load("mine", "data.eval_batch_size=4", "seed=null")
    assert config.values["data"]["count"] == 4
    assert config.values["model"] == {"name": "wide", "num_classes": 50, "sizes": [0, 0], "note": "runs", "width": 0.0}


def test_a_referred_value_is_checked_at_its_place(write: Write, problems: Problems) -> None:
    """A text cannot be a width, wherever it was written."""
    write("mine", "base: base\nvars: {w: broad}\nmodel:\n  width: ${vars.w}\n")
    (problem,) = problems("mine")
    assert (problem.place, problem.key) == ("configs/mine.yaml:4", "model.width")


def test_a_broken_reference_is_one_problem_not_two(write: Write, problems: Problems) -> None:
    """Its text is not also reported as being no number."""
    write("mine", "base: base\nmodel:\n  width: ${vars.w}\n  num_classes: ${env:NOT_SET_ANYWHERE}\n")
    assert [problem.place for problem in problems("mine")] == ["configs/mine.yaml:3", "configs/mine.yaml:4"]


def test_an_entry_of_vars_that_nothing_refers_to_is_a_problem(write: Write, problems: Problems) -> None:
    """It would be read by nobody."""
    write("mine", "base: base\nvars: {used: 1, unused: 2}\nseed: ${vars.used}\n")
    (problem,) = problems("mine")
    assert (problem.key, problem.message) == ("vars.unused", "nothing refers to it")


def test_a_reference_follows_the_last_layer(write: Write, load: Load) -> None:
    """An override of what is referred to reaches all that refer to it."""
    write("mine", "base: base\nvars: {w: 1}\nmodel: {width: '${vars.w}', note: 'w${vars.w}'}\n")
    assert load("mine", "vars.w=2").values["model"] == {"name": "wide", "width": 2, "note": "w2"}
