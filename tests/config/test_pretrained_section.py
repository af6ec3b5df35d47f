"""The section `pretrained:`: one start point, a list of them, or several by label, checked without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flambeau.cli import main
from flambeau.config import Config, Project
from flambeau.config.schema import json_schema
from flambeau.config.start_points import Place, fault_of_rule, read_place, start_points
from flambeau.errors import Problem

Load = Callable[..., Config]
Problems = Callable[..., list[Problem]]

GOOD = [
    "{path: runs/a}",
    "{path: runs/a, checkpoint: best, weights: ema}",
    "{path: runs/a, checkpoint: 1200, strict: false}",
    "{path: w.pt, key: model_ema, map: {'encoder.': 'backbone.', '^head(.*)': null}, into: net, exclude: [head]}",
    "{backbone: {path: 'hf://org/name@v2/file.safetensors'}, head: {path: 'timm://resnet18'}}",
    "[{path: runs/a, include: [a]}, {path: runs/b}]",
    "{a: {path: runs/a}, b: null}",
]

BAD = [
    ("runs/a", "pretrained", "expected a mapping", "write {path: runs/a}"),
    ("{pth: runs/a}", "pretrained.pth", "unknown setting of `pretrained`", "did you mean 'path'?"),
    ("{strict: true}", "pretrained", "`path` is missing", "give a run folder"),
    ("{a: {exclude: [b]}}", "pretrained.a", "`path` is missing", "give a run folder"),
    ("{a: {path: 3}}", "pretrained.a.path", "expected text, not 3", "put it in quotes"),
    ("[runs/a]", "pretrained.0", "expected a mapping", "write {path: ...}"),
    ("[{path: runs/a, checkpoint: newest}]", "pretrained.0.checkpoint", "expected one of", None),
    ("{path: runs/a, checkpoint: -1}", "pretrained.checkpoint", "of at least 0", None),
    ("{path: w.pt, weights: ema}", "pretrained.weights", "nothing reads this value", "remove it"),
    ("{path: runs/a, key: model}", "pretrained.key", "nothing reads this value", "remove it"),
    ("{path: 'hf://name'}", "pretrained.path", "does not name a repository", "write hf://org/name"),
    ("{path: 'hf://a/b/../c.pt'}", "pretrained.path", "does not name a repository", "write hf://org/name"),
    ("{path: 'timm://a/b'}", "pretrained.path", "does not name a model of timm", "write timm://"),
    ("{path: 'https://a/b.pt'}", "pretrained.path", "nothing is read from https://", "fetch the file"),
    ("{path: a, map: {'^(': b}}", "pretrained.map.^(", "is no regular expression", None),
    ("{path: a, map: {'^a': '\\1'}}", "pretrained.map.^a", "invalid group reference", None),
]


@pytest.mark.parametrize("section", GOOD)
def test_what_may_stand_there(load: Load, project: Project, section: str) -> None:
    """For the check, and for the schema by which editors complete it."""
    values = load("base", f"pretrained={section}").values["pretrained"]
    jsonschema.Draft7Validator(json_schema(project)).validate({"pretrained": values})


@pytest.mark.parametrize(("section", "key", "message", "suggestion"), BAD)
def test_what_may_not_is_named_with_the_remedy(
    problems: Problems, section: str, key: str, message: str, suggestion: str | None
) -> None:
    (problem,) = problems("base", f"pretrained={section}")
    assert problem.key == key
    assert message in problem.message
    assert suggestion is None or suggestion in (problem.suggestion or "")


@pytest.mark.parametrize("section", ["{pth: runs/a}", "{path: runs/a, checkpoint: newest}", "3", "{a: {path: 3}}"])
def test_the_schema_refuses_it_too(project: Project, section: str) -> None:
    import yaml

    validator = jsonschema.Draft7Validator(json_schema(project))
    assert list(validator.iter_errors({"pretrained": yaml.safe_load(section)}))


def test_a_base_may_give_what_a_file_changes(load: Load, write: Any) -> None:
    """By label, as sections are merged."""
    write("parts", "base: [base]\npretrained:\n  a: {path: runs/a, strict: false}\n  b: {path: runs/b}\n")
    write("mine", "base: [parts]\npretrained: {a: {path: runs/c}, b: null}\n")
    assert list(start_points(load("mine").values["pretrained"])) == [
        ("pretrained.a", {"path": "runs/c", "strict": False})
    ]


def test_it_is_shown_with_its_origin(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """The defaults of each part beside what was set; nothing where there is no start point."""
    assert main(["config", "base", "pretrained={head: {path: runs/a}}"]) == 0
    lines = [line.split("#")[0].strip() for line in capsys.readouterr().out.split("\n")]
    place = lines.index("head:")
    assert lines[place + 1 : place + 4] == ["path: runs/a", "checkpoint: null", "weights: auto"]
    assert main(["config", "base"]) == 0
    assert "pretrained" not in capsys.readouterr().out


def test_torch_is_not_imported(project: Project) -> None:
    """The check answers in a few hundredths of a second."""
    program = (
        "import sys; from flambeau.cli import main\n"
        "status = main(['config', 'base', 'pretrained={path: hf://x}'])\n"
        "print(status, [name for name in ('torch', 'safetensors', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=project.root, capture_output=True, text=True)
    assert done.stdout.strip() == "2 []", done.stderr


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("runs/a b", Place("local", "runs/a b")),
        ("hf://org/net", Place("hub", "org/net")),
        ("hf://org/net@refs%2Fpr%2F1", Place("hub", "org/net", "refs/pr/1")),
        ("hf://org/net@v1/deep/w.pt", Place("hub", "org/net", "v1", "deep/w.pt")),
        ("hf://org/net/w.safetensors", Place("hub", "org/net", None, "w.safetensors")),
        ("timm://resnet18.a1_in1k", Place("timm", "resnet18.a1_in1k")),
    ],
)
def test_what_a_path_names(path: str, place: Place) -> None:
    assert read_place(path) == place


@given(st.text(), st.text())
def test_any_rule_is_judged_without_a_crash(pattern: str, replacement: str) -> None:
    """It can be applied, or it is said why not."""
    from flambeau.pretrained.names import Renaming

    if fault_of_rule(pattern, replacement) is None:
        Renaming({pattern: replacement})("some.name")
