"""Parts are found by reading source, loaded by name, and refused where they could run code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flambeau.errors import ConfigError, MissingExtraError, UsageError
from flambeau.registry import find_parts, load_part, refusal, register, scan_parts, takes_batch

MODEL = '''
from flambeau import register
from torch import nn

@register.model("{name}")
class {cls}(nn.Module):
    """{cls} of this project."""
    def __init__(self, width: int = 1) -> None:
        super().__init__()
'''


def write(root: Path, path: str, text: str) -> Path:
    """A file of a project, its folders made."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_a_decorated_class_in_any_folder_is_found_with_its_place_and_summary(tmp_path: Path) -> None:
    """No import list: the decorator in any file of the project suffices."""
    file = write(tmp_path, "models/vision/tiny.py", MODEL.format(name="tiny", cls="Tiny"))
    part = find_parts(tmp_path)["model", "tiny"]
    assert (part.module, part.qualname, part.target) == (
        "models.vision.tiny",
        "Tiny",
        "models.vision.tiny.Tiny",
    )
    assert part.summary == "Tiny of this project."
    assert part.file == file.resolve() and part.line == 6


def test_finding_parts_imports_neither_them_nor_torch(tmp_path: Path) -> None:
    """A file that would fail on import is found all the same."""
    write(tmp_path, "broken.py", MODEL.format(name="tiny", cls="Tiny") + "\nraise RuntimeError('imported')\n")
    code = (
        "import sys; from pathlib import Path; from flambeau.registry import find_parts;"
        f"assert ('model', 'tiny') in find_parts(Path({str(tmp_path)!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    "imported, used",
    [
        ("from flambeau.registry import register", "register"),
        ("from flambeau import register as name", "name"),
        ("import flambeau", "flambeau.register"),
        ("import flambeau as fb", "fb.register"),
    ],
)
def test_every_way_of_importing_the_decorator_is_understood(tmp_path: Path, imported: str, used: str) -> None:
    """`register` may come under any name."""
    write(tmp_path, "parts.py", f'{imported}\n@{used}.data("mine")\ndef mine():\n    pass\n')
    assert ("data", "mine") in find_parts(tmp_path)


def test_a_register_of_another_library_is_not_taken_for_ours(tmp_path: Path) -> None:
    """Django's `register.filter` and the like name nothing here."""
    write(tmp_path, "parts.py", 'from django import register\n@register.model("theirs")\nclass X: ...\n')
    assert ("model", "theirs") not in find_parts(tmp_path)


def test_a_projects_part_shadows_the_librarys_of_the_same_name(tmp_path: Path) -> None:
    """`lenet` may be one's own."""
    write(tmp_path, "models/lenet.py", MODEL.format(name="lenet", cls="Own"))
    assert find_parts(tmp_path)["model", "lenet"].target == "models.lenet.Own"


def test_two_parts_of_one_name_are_a_problem_that_names_both_places(tmp_path: Path) -> None:
    """Which of them was meant is never guessed."""
    first = write(tmp_path, "a.py", MODEL.format(name="tiny", cls="A"))
    second = write(tmp_path, "b.py", MODEL.format(name="tiny", cls="B"))
    with pytest.raises(ConfigError) as caught:
        find_parts(tmp_path)
    assert str(first) in str(caught.value) and str(second) in str(caught.value)


@pytest.mark.parametrize("call", ["NAME", '"a", "b"', ""])
def test_a_name_that_is_no_literal_is_a_problem(tmp_path: Path, call: str) -> None:
    """What cannot be found by reading is not silently left out."""
    write(tmp_path, "a.py", f'from flambeau import register\nNAME = "x"\n@register.model({call})\nclass A: ...\n')
    assert ["literal" in problem.message for problem in scan_parts(tmp_path).problems] == [True]


def test_tests_environments_data_and_hidden_folders_are_not_searched(tmp_path: Path) -> None:
    """Only the project's own code names parts."""
    for folder in ("tests", ".hidden", "node_modules", "data/raw", "runs/1", "own_env/lib"):
        write(tmp_path, f"{folder}/part.py", MODEL.format(name=f"in_{Path(folder).name}", cls="A"))
    write(tmp_path, "own_env/pyvenv.cfg", "")
    write(tmp_path, "images/train/cats/part.py", MODEL.format(name="in_images", cls="A"))
    write(tmp_path, "data_code/part.py", MODEL.format(name="kept", cls="A"))
    own = {name for _, name in find_parts(tmp_path)} - {name for _, name in find_parts(None)}
    assert own == {"kept"}


def test_a_data_folder_that_is_a_package_is_searched(tmp_path: Path) -> None:
    """`data/` with an `__init__.py` holds code."""
    write(tmp_path, "data/__init__.py", "")
    write(tmp_path, "data/mine.py", MODEL.format(name="kept", cls="A"))
    assert ("model", "kept") in find_parts(tmp_path)


def test_a_file_that_is_not_valid_python_hides_no_other_part(tmp_path: Path) -> None:
    """A half-written file is remembered for the message about a missing name, and stops nothing."""
    write(tmp_path, "models/half.py", "from flambeau import register\n@register.model('x'\n")
    write(tmp_path, "models/tiny.py", MODEL.format(name="tiny", cls="Tiny"))
    scan = scan_parts(tmp_path)
    assert ("model", "tiny") in scan.parts and not scan.problems
    assert len(scan.unreadable) == 1 and "half.py:2" in scan.unreadable[0]


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    """What is kept in memory never outlives the file's state."""
    file = write(tmp_path, "a.py", MODEL.format(name="one", cls="A"))
    assert ("model", "one") in find_parts(tmp_path)
    file.write_text(MODEL.format(name="another", cls="A"))
    assert ("model", "one") not in find_parts(tmp_path) and ("model", "another") in find_parts(tmp_path)


def test_a_part_below_src_is_imported_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `src/` layout works as its packaging says."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    write(tmp_path, "src/pkg_below_src/__init__.py", "")
    write(tmp_path, "src/pkg_below_src/net.py", MODEL.format(name="net", cls="Net"))
    assert find_parts(tmp_path)["model", "net"].target == "pkg_below_src.net.Net"
    assert load_part("model", "net", tmp_path).__name__ == "Net"


def test_the_decorator_returns_its_class_unchanged() -> None:
    """Registering is a convenience and changes nothing."""

    class Unchanged:
        pass

    assert register.model("unchanged_by_test")(Unchanged) is Unchanged


def test_a_part_registered_in_a_notebook_is_found_by_name() -> None:
    """Names of a running script count where no file has them."""
    import torch

    cls = register.model("of_a_notebook")(type("Net", (torch.nn.Module,), {}))
    assert load_part("model", "of_a_notebook") is cls


def test_an_unknown_name_gives_the_nearest() -> None:
    """`adamm` is answered with `adamw` or `adam`."""
    with pytest.raises(UsageError, match="did you mean 'adam"):
        load_part("optimizer", "adamm")


def test_an_alias_loads_its_target() -> None:
    """`adamw` is torch.optim.AdamW."""
    import torch

    assert load_part("optimizer", "adamw") is torch.optim.AdamW
    assert load_part("optimizer", "torch.optim.Rprop") is torch.optim.Rprop


def test_the_import_error_of_a_users_module_is_shown_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cause, not a wrapper of ours, is what helps."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    text = "import a_module_that_does_not_exist\n" + MODEL.format(name="needy", cls="Needy")
    write(tmp_path, "needy_module.py", text)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_does_not_exist"):
        load_part("model", "needy", tmp_path)


REFUSED = [
    "os.system",
    "subprocess.Popen",
    "builtins.eval",
    "pickle.loads",
    "importlib.import_module",
    "ctypes.CDLL",
    "functools.partial",
    "pip.main",
    "joblib.load",
    "cloudpickle.loads",
    "torch.load",
    "torch.hub.load",
    "torch.jit.load",
    "torch.serialization.load",
    "torch.package.PackageImporter",
    "torch.utils.cpp_extension.load",
    "numpy.load",
    "my_project.net.Net.__init__.__globals__",
]


@pytest.mark.parametrize("target", REFUSED)
def test_import_paths_that_run_code_are_refused(target: str) -> None:
    """A configuration is not a way in."""
    assert refusal(target)
    for kind in ("model", "data", "criterion"):
        with pytest.raises(UsageError):
            load_part(kind, target)


@pytest.mark.parametrize(
    "target", ["torch.os.remove", "torch.nn.functional.os.system", "torch.serialization.os.system"]
)
def test_a_refused_function_behind_another_modules_name_is_refused(target: str) -> None:
    """What counts is where the object is defined, not the path to it."""
    with pytest.raises(UsageError):
        load_part("model", target)


@pytest.mark.parametrize(
    "target", ["torch.optim.AdamW", "timm.create_model", "torchvision.models.resnet18", "nets.unet.UNet"]
)
def test_import_paths_of_parts_are_not_refused(target: str) -> None:
    """What people name in configurations passes."""
    assert refusal(target) is None


@pytest.mark.parametrize(
    "kind, target",
    [
        ("optimizer", "torch.nn.Linear"),
        ("model", "torch.optim.AdamW"),
        ("model", "torch.nn.functional.relu"),
        ("model", "torch.compile"),
        ("criterion", "torch.nn.functional.cross_entropy"),
        ("scheduler", "torch.optim.lr_scheduler.StepLR"),
        ("data", "torch.utils.data.DataLoader"),
        ("metric", "torch.nn.Linear"),
        ("tracker", "torch.utils.tensorboard.SummaryWriter"),
        ("callback", "torch.nn.Linear"),
        ("trainer", "torch.nn.Linear"),
    ],
)
def test_a_part_of_another_kind_is_refused_when_it_is_loaded(kind: str, target: str) -> None:
    """The slot says what may stand in it."""
    if target.startswith("torch.utils.tensorboard"):
        pytest.importorskip("tensorboard")
    with pytest.raises(UsageError, match=f"{target} is no {kind}"):
        load_part(kind, target)


def test_a_package_that_is_not_installed_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy is in the message."""
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(MissingExtraError, match=r"flambeau\[vision\]"):
        load_part("model", "torchvision.models.resnet18")
    with pytest.raises(UsageError, match="not_there_at_all is not installed"):
        load_part("model", "not_there_at_all.Net")


def test_a_function_of_outputs_and_targets_is_itself_a_criterion() -> None:
    """Other functions, and classes, make one."""

    def dice(outputs: object, targets: object, smooth: float = 1.0) -> None: ...

    def make_dice(smooth: float = 1.0) -> None: ...

    assert takes_batch(dice)
    assert not takes_batch(make_dice)
    assert not takes_batch(type("Dice", (), {}))


def test_a_projects_folder_is_not_hidden_by_an_installed_package_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets/` is a usual folder of a project, and a library too; Python by itself would find the library alone."""
    from flambeau.config.catalog import Catalog
    from flambeau.config.signature import Signature

    installed, project = tmp_path / "installed", tmp_path / "project"
    (installed / "hiding_things").mkdir(parents=True)
    (installed / "hiding_things" / "__init__.py").write_text("raise RuntimeError('not to be imported')")
    (project / "hiding_things").mkdir(parents=True)
    source = "from flambeau import register\n\n@register.data('own')\nclass Own:\n    train: int = 3\n"
    (project / "hiding_things" / "mine.py").write_text(source)
    monkeypatch.setattr(sys, "path", [*sys.path, str(installed)])
    found = load_part("data", "own", project)
    assert found.train == 3
    assert load_part("data", "hiding_things.mine.Own", project) is found
    assert isinstance(Catalog(project).signature("hiding_things.mine.Own"), Signature)
    del sys.modules["hiding_things.mine"]
