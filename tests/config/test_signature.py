"""Signatures read from source agree with those of the imported objects."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from flambeau.config.signature import Code, Signature, read_signature
from flambeau.config.source import Missing, Source

MODULES = (
    "torch.nn",
    "torch.optim",
    "torch.optim.lr_scheduler",
    "torch.optim.swa_utils",
    "torch.nn.utils",
    "torch.nn.utils.parametrizations",
    "torch.nn.init",
    "torch.nn.functional",
    "torch.nn.parallel",
    "torch.utils.data",
    "torch.distributions",
)
STANDARD = ("enum.Enum", "typing.ParamSpec", "warnings.deprecated", "typing.override")
"""Re-exports of the standard library: no parts, and written in C or with metaclasses."""


def public_callables() -> list[tuple[str, Any]]:
    """Every public class and function of the modules, by import path."""
    found = []
    for name in MODULES:
        module = importlib.import_module(name)
        for own, value in vars(module).items():
            if not own.startswith("_") and callable(value) and not isinstance(value, types.ModuleType):
                found.append((f"{name}.{own}", value))
    return found


def agrees(read: Signature, real: inspect.Signature) -> bool:
    """Whether names, what is required, literal defaults and openness are the same."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {name: item for name, item in real.parameters.items() if item.kind in kinds}
    takes_any = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in real.parameters.values())
    if not takes_any and (read.open or read.parameters.keys() != named.keys()):
        return False
    for name, item in named.items():
        mine = read.parameters.get(name)
        if mine is None or mine.required != (item.default is item.empty):
            return False
        if not mine.required and not isinstance(mine.default, Code) and mine.default != item.default:
            return False
    return True


def test_the_reader_agrees_with_python_on_the_public_callables_of_torch() -> None:
    """Never wrong; where it cannot read (computed or compiled), it says that any argument may be taken."""
    source = Source()
    compared, unread, wrong = 0, [], []
    for path, value in public_callables():
        try:
            real = inspect.signature(value)
        except (ValueError, TypeError):
            continue  # written in C
        read = read_signature(path, source=source)
        compared += 1
        if isinstance(read, Missing):
            wrong.append(path)
        elif read.kind == "unknown":
            assert read.open
            unread.append(path)
        elif not agrees(read, real) and read.target not in STANDARD:
            wrong.append(path)
    print(f"{compared - len(unread) - len(wrong)} of {compared} read and equal, {len(unread)} left open")
    assert not wrong
    assert compared > 400 and len(unread) < 0.06 * compared


def project(tmp_path: Path, text: str) -> Source:
    """A project of one module, `parts`."""
    (tmp_path / "parts.py").write_text(text)
    return Source([tmp_path])


def read(source: Source, path: str) -> Signature:
    """A signature that must be there."""
    found = read_signature(path, source=source)
    assert isinstance(found, Signature)
    return found


def test_reading_imports_nothing(tmp_path: Path) -> None:
    """Not even torch's top package, though torch.optim lies in it."""
    code = (
        "import sys; from flambeau.config.signature import read_signature;"
        "s = read_signature('torch.optim.AdamW'); assert s.parameters['lr'].default == 1e-3;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_kwargs_handed_to_the_base_class_are_its_arguments(tmp_path: Path) -> None:
    """Without those that the call itself gives, by keyword or by position."""
    source = project(
        tmp_path,
        "class Base:\n"
        "    def __init__(self, depth, width: int = 1, *, bias: bool = True): ...\n"
        "class Child(Base):\n"
        "    def __init__(self, heads: int, **kwargs):\n"
        "        super().__init__(3, bias=False, **kwargs)\n",
    )
    child = read(source, "parts.Child")
    assert list(child.parameters) == ["heads", "width"] and not child.open
    assert child.ancestors == ("parts.Base",)


def test_kwargs_that_are_taken_by_name_are_arguments(tmp_path: Path) -> None:
    """`kwargs.pop("width", 1)`, and the complaint about the rest, are understood."""
    source = project(
        tmp_path,
        "def make(**kwargs):\n"
        "    width = kwargs.pop('width', 1)\n"
        "    depth = kwargs['depth']\n"
        "    if kwargs:\n"
        "        raise TypeError(f'unknown: {kwargs}')\n",
    )
    made = read(source, "parts.make")
    assert set(made.parameters) == {"width", "depth"} and not made.open


def test_kwargs_handed_to_another_function_are_its_arguments(tmp_path: Path) -> None:
    """As torchvision's and timm's model functions do."""
    source = project(
        tmp_path,
        "class Net:\n    def __init__(self, blocks, width=1): ...\n"
        "def _net(blocks, **kwargs):\n    return Net(blocks, **kwargs)\n"
        "def net18(**kwargs):\n    return _net(2, **kwargs)\n",
    )
    assert list(read(source, "parts.net18").parameters) == ["width"]


def test_kwargs_of_unknown_use_leave_a_signature_open(tmp_path: Path) -> None:
    """A wrong alarm would be worse than silence."""
    source = project(
        tmp_path,
        "def loop(**kwargs):\n    for key in kwargs: print(key)\n"
        "def handed(**kwargs):\n    return compiled(**kwargs)\n"
        "def stored(**kwargs):\n    config = dict(kwargs)\n"
        "def decorated_by_unknown(x): ...\n"
        "decorated = unknown(decorated_by_unknown)\n",
    )
    for name in ("loop", "handed", "stored", "decorated"):
        assert read(source, f"parts.{name}").open, name


def test_kwargs_that_nothing_reads_do_not_open_a_signature(tmp_path: Path) -> None:
    """A value that vanishes in them would never be read."""
    source = project(tmp_path, "class Net:\n    def __init__(self, width=1, **kwargs):\n        self.width = width\n")
    assert not read(source, "parts.Net").open


def test_dataclass_fields_are_arguments(tmp_path: Path) -> None:
    """Those of the bases too; with `init=False` and ClassVar left out."""
    source = project(
        tmp_path,
        "from dataclasses import dataclass, field\nfrom typing import ClassVar\n"
        "@dataclass\nclass Base:\n    width: int\n    kind: ClassVar[str] = 'x'\n"
        '@dataclass\nclass Net(Base):\n    depth: int = 2\n    """Layers."""\n'
        "    sizes: list[int] = field(default_factory=list)\n    total: int = field(init=False)\n",
    )
    net = read(source, "parts.Net")
    assert list(net.parameters) == ["width", "depth", "sizes"]
    assert net.parameters["width"].required and net.parameters["depth"].default == 2
    assert net.parameters["depth"].doc == "Layers." and net.parameters["sizes"].default == []


def test_re_exports_aliases_and_star_imports_are_followed(tmp_path: Path) -> None:
    """A part is found under every name that Python would find it by."""
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "net.py").write_text("class Net:\n    def __init__(self, width=1): ...\n")
    (package / "other.py").write_text("from .net import *\nAlias = Net\n")
    (package / "__init__.py").write_text("from .other import Alias\nfrom .net import Net as Renamed\n")
    source = Source([tmp_path])
    for path in ("pkg.net.Net", "pkg.other.Net", "pkg.other.Alias", "pkg.Alias", "pkg.Renamed"):
        assert read(source, path).target == "pkg.net.Net", path


def test_offers_are_the_attributes_that_a_part_has(tmp_path: Path) -> None:
    """Class fields, properties, what methods assign to self; the bases' included; private ones not."""
    source = project(
        tmp_path,
        "class Base:\n    size: int\n"
        "class Data(Base):\n    known = 1\n"
        "    def __init__(self):\n        self.train, self._hidden = 1, 2\n        self.val: int = 3\n"
        "    @property\n    def num_classes(self): return 10\n",
    )
    assert read(source, "parts.Data").offers == {"size", "known", "train", "val", "num_classes"}


def test_what_does_not_exist_is_missing_with_what_is_there(tmp_path: Path) -> None:
    """A package, a module and a name that are not there are three different messages."""
    source = project(tmp_path, "class Net: ...\n")
    absent = read_signature("prats.Net", source=source)
    assert isinstance(absent, Missing) and absent.package == "prats" and "parts" in absent.near
    name = read_signature("parts.Nett", source=source)
    assert isinstance(name, Missing) and name.package is None and name.near == ("Net",)
    deep = read_signature("torch.optim.AdmaW", source=source)
    assert isinstance(deep, Missing) and "AdamW" in deep.near


@pytest.mark.parametrize(
    "path", ["torch.nn.functional.linear", "math.sqrt", "torch.Tensor", "numpy.array", "torch._C.Generator"]
)
def test_compiled_code_is_open(path: str) -> None:
    """What has no source passes until it is built."""
    assert read(Source(), path).open


def test_a_module_that_computes_its_names_is_not_judged(tmp_path: Path) -> None:
    """`__getattr__` and `globals()` may bring any name."""
    source = project(tmp_path, "def __getattr__(name): ...\n")
    assert read(source, "parts.Anything").open


def test_constructors_that_are_generated_are_open(tmp_path: Path) -> None:
    """By typing, attrs, pydantic, or an assignment."""
    source = project(
        tmp_path,
        "from typing import NamedTuple\nimport attrs, functools\nfrom pydantic import BaseModel\n"
        "class Tuple(NamedTuple):\n    width: int\n"
        "@attrs.define\nclass Attrs:\n    width: int\n"
        "class Model(BaseModel):\n    width: int\n"
        "class Net:\n    def __init__(self, width, depth): ...\n"
        "class Net18(Net):\n    __init__ = functools.partialmethod(Net.__init__, depth=18)\n",
    )
    for name in ("Tuple", "Attrs", "Model", "Net18"):
        assert read(source, f"parts.{name}").open, name


def test_circles_of_imports_and_of_bases_come_to_an_end(tmp_path: Path) -> None:
    """Nonsense is answered, not followed for ever."""
    (tmp_path / "a.py").write_text("from b import Net\nclass Own(Own): ...\n")
    source = project(tmp_path, "")
    (tmp_path / "b.py").write_text("from a import Net\nfrom b import *\n")
    assert read(source, "a.Net").open
    assert isinstance(read_signature("a.Own", source=source), Signature)


def test_a_default_path_is_text_as_a_configuration_writes_it(tmp_path: Path) -> None:
    source = project(tmp_path, "from pathlib import Path\ndef make(root: Path = Path('data'), size: int = 3): ...\n")
    assert read(source, "parts.make").parameters["root"].default == "data"
