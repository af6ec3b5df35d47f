"""What annotations allow, and what the message about a wrong value says."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flambeau.config.convert import to_arguments, to_settings
from flambeau.config.source import Module, Source
from flambeau.config.types import Type, find_faults, read_type

HEADER = """
from __future__ import annotations
import os, pathlib, typing
import typing as t
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union
from annotated_types import Ge, Gt, Interval, Le, Lt
from torch import Tensor
import torch

Size = Union[int, tuple[int, int]]
Missing = not_a_type

@dataclass
class Inner:
    patience: int
    scale: float = 1.0

@dataclass
class Outer:
    inner: Inner
    inners: list[Inner]
"""


def type_of(annotation: str) -> Type:
    """The type of an annotation, in a module that has the usual imports."""
    source = Source()
    module = Module("header", Path("header.py"), None, ast.parse(HEADER))
    source._modules["header"] = module
    source._specs["header"] = __spec__
    return read_type(ast.parse(annotation, mode="eval").body, module, source)


GOOD: list[tuple[str, Any]] = [
    ("int", 3),
    ("float", 3),
    ("float", 1e-3),
    ("float", float("inf")),
    ("str", "text"),
    ("bool", True),
    ("Path", "a/b"),
    ("str | os.PathLike", "a"),
    ("pathlib.Path | None", None),
    ("Optional[int]", None),
    ("t.Optional[int]", 2),
    ("Union[int, str]", "a"),
    ("'int | None'", 3),
    ("Literal['a', 'b', 3]", "b"),
    ("Literal['a', 'b', 3]", 3),
    ("list[int]", [1, 2]),
    ("Sequence[float]", [1, 2.5]),
    ("tuple[int, ...]", [1, 2, 3]),
    ("tuple[float, float]", [0.9, 1]),
    ("dict[str, int]", {"a": 1}),
    ("Mapping[str, Any]", {"a": [None]}),
    ("float | Tensor", 1.0),
    ("Size", 3),
    ("Size", [3, 4]),
    ("Annotated[int, Ge(1)]", 1),
    ("Annotated[float, Interval(ge=0, lt=1)]", 0),
    ("Annotated[int, Ge(1)] | Literal['auto']", "auto"),
    ("Inner", {"patience": 3}),
    ("Inner | None", {"patience": 3, "scale": 2}),
    ("Outer", {"inner": {"patience": 1}, "inners": [{"patience": 2}]}),
]

BAD: list[tuple[str, Any, str]] = [
    ("int", True, "expected an integer, not true"),
    ("int", 3.0, "write 3"),
    ("int", "3", "take the quotes away"),
    ("int", None, "expected an integer, not null"),
    ("float", "fast", "expected a number"),
    ("float", False, "expected a number, not false"),
    ("bool", 1, "write true"),
    ("bool", "off", "write false"),
    ("str", 3, "put it in quotes"),
    ("Path", 3, "expected a path"),
    ("Optional[int]", "a", "expected an integer or null, not 'a'"),
    ("Literal['fp32', 'bf16']", "bf17", "did you mean 'bf16'?"),
    ("Literal[1]", True, "expected 1, not true"),
    ("list[int]", 3, "expected a list of integers"),
    ("list[int]", [1, "a"], "expected an integer, not 'a'"),
    ("tuple[float, float]", [0.9], "expected a list of 2 values"),
    ("dict[str, int]", {"a": "b"}, "expected an integer"),
    ("float | Tensor", "fast", "expected a number"),
    ("Size", "a", "expected an integer or a list of 2 values"),
    ("Annotated[int, Ge(1)]", 0, "expected an integer of at least 1, not 0"),
    ("Annotated[int, Ge(1)] | None", 0, "expected an integer of at least 1, not 0"),
    ("Annotated[float, Interval(ge=0, lt=1)]", 1, "below 1"),
    ("Annotated[float, Gt(0)]", 0, "above 0"),
    ("Annotated[float, Le(2)]", 3, "of at most 2"),
    ("Annotated[float, Ge(0)]", float("nan"), "of at least 0"),
    ("Inner | None", {"patiense": 3}, "did you mean 'patience'?"),
    ("Inner", {}, "'patience' is missing"),
    ("Inner", 3, "expected a mapping"),
]

UNREADABLE = [
    "Any", "Callable[[int], int]", "torch.dtype", "torch.device | None", "Unknown", "Missing", "int | Unknown",
    "list[Unknown]", "1 + 1", "'not python ('", "type[int]", "Optional[torch.device]",
]  # fmt: skip


@pytest.mark.parametrize("annotation, value", GOOD)
def test_a_value_of_its_type_passes(annotation: str, value: Any) -> None:
    """The forms that signatures of the field use."""
    assert find_faults(value, type_of(annotation)) == []


@pytest.mark.parametrize("annotation, value, message", BAD)
def test_a_value_of_another_type_is_a_fault_that_says_what_is_expected(
    annotation: str, value: Any, message: str
) -> None:
    """One fault, with the remedy where there is one."""
    faults = find_faults(value, type_of(annotation))
    said = [f"{fault.message}; {fault.suggestion}" for fault in faults]
    assert any(message in text for text in said), said


@pytest.mark.parametrize("annotation", UNREADABLE)
@pytest.mark.parametrize("value", [1, "text", [1, "a"], {"a": 1}, True])
def test_an_annotation_that_cannot_be_read_lets_every_value_pass(annotation: str, value: Any) -> None:
    """A wrong alarm would cost more than a fault that the call finds."""
    if annotation == "list[Unknown]" and not isinstance(value, list):
        return
    assert find_faults(value, type_of(annotation)) == []


def test_text_with_a_deferred_reference_waits_for_its_value() -> None:
    """`${data.num_classes}` may become an integer."""
    assert find_faults("${data.num_classes}", type_of("int")) == []


def test_a_fault_within_a_value_says_where() -> None:
    """The path leads to the key that is wrong."""
    faults = find_faults({"inner": {"patience": "x"}, "inners": [{"patience": 1, "skale": 2}]}, type_of("Outer"))
    assert [fault.path for fault in faults] == [("inner", "patience"), ("inners", 0, "skale")]
    assert faults[1].suggestion == "did you mean 'scale'?"


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), st.lists, max_leaves=8)
)
def test_every_value_is_judged_without_failing_and_passes_as_anything(value: Any) -> None:
    """Whatever YAML gives, the answer is a list of faults."""
    for annotation, _ in GOOD[:8]:
        assert isinstance(find_faults(value, _TYPES[annotation]), list)
    assert find_faults(value, Type("any")) == []


_TYPES = {annotation: type_of(annotation) for annotation, _ in GOOD}


@dataclass(kw_only=True)
class Inner:
    patience: int = 1
    scale: float = 1.0


@dataclass(kw_only=True)
class Settings:
    rate: float = 0.5
    path: Path | None = None
    betas: tuple[float, float] = (0.9, 0.99)
    inner: Inner | None = None
    inners: list[Inner] = field(default_factory=list)
    size: int = 7


def test_values_become_settings_with_nested_settings_paths_tuples_and_floats() -> None:
    """What the engine receives has the declared types."""
    made = to_settings(
        Settings, {"rate": 1, "path": "a/b", "betas": [1, 0.5], "inner": {"scale": 2}, "inners": [{"patience": 3}]}
    )
    assert made == Settings(
        rate=1.0, path=Path("a/b"), betas=(1.0, 0.5), inner=Inner(scale=2.0), inners=[Inner(patience=3)]
    )
    assert isinstance(made.rate, float) and isinstance(made.inner.scale, float) and isinstance(made.betas[0], float)  # type: ignore[union-attr]


def test_null_takes_a_setting_back_to_its_default() -> None:
    """Where None is no value of the setting itself."""
    assert to_settings(Settings, {"size": None, "inner": None}) == Settings()


def test_an_unknown_setting_is_no_silent_matter() -> None:
    """Settings that were not checked do not vanish."""
    with pytest.raises(TypeError, match="skale"):
        to_settings(Inner, {"skale": 1})


def test_arguments_of_a_part_take_the_form_of_its_hints() -> None:
    """Paths, tuples and dataclasses; values without a hint stay as they are."""

    class Part:
        def __init__(self, root: Path, betas: tuple[float, ...], inner: Inner, other=None): ...  # type: ignore[no-untyped-def]

    made = to_arguments(Part, {"root": "a", "betas": [1, 2], "inner": {"scale": 3}, "other": [1]})
    assert made == {"root": Path("a"), "betas": (1.0, 2.0), "inner": Inner(scale=3.0), "other": [1]}
