"""A project with parts of its own, so that tests depend on no part that Flambeau ships."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flambeau.config import Config, Project, load_config
from flambeau.errors import ConfigError, Problem

PARTS = '''
from torch import nn, optim

from flambeau import register


@register.data("blobs")
class Blobs:
    """Points around centres."""

    def __init__(self, count: int = 100, folder: str | None = None, token: str | None = None, seed: int = 0):
        self.num_classes = 3
        self.train = self.val = self.test = None


@register.model("wide")
class Wide(nn.Module):
    """One wide layer."""

    def __init__(self, num_classes: int = 10, width: float = 1.0, note: str = "", sizes: list[int] = ()): ...


@register.model("deep")
class Deep(nn.Module):
    """Many layers."""

    def __init__(self, num_classes: int = 10, depth: int = 3, rates: dict[str, float] | None = None): ...


@register.optimizer("plain")
class Plain(optim.Optimizer):
    def __init__(self, params, lr: float = 0.1, momentum: float = 0.0): ...


@register.optimizer("fancy")
class Fancy(optim.Optimizer):
    def __init__(self, params, lr: float = 0.1, beta: float = 0.9): ...


@register.metric("hits")
class Hits:
    def __init__(self, k: int = 1): ...

    def update(self, outputs, targets): ...

    def compute(self): ...

    def reset(self): ...


@register.tracker("notebook")
class Notebook:
    def __init__(self, run_dir, api_key: str | None = None, every: int = 1): ...

    def log_scalars(self, values, step): ...

    def close(self): ...
'''

BASE = """\
seed: 0
data: {name: blobs, batch_size: 8}
model: {name: wide}
criterion: {name: torch.nn.CrossEntropyLoss}
optimizer: {name: plain, lr: 1e-3}
trainer: {epochs: 2}
"""

Write = Callable[[str, str], Path]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project in a temporary folder, which is the working directory; `base` is a whole configuration."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "parts.py").write_text(PARTS)
    (tmp_path / "configs" / "base.yaml").write_text(BASE)
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


@pytest.fixture
def write(project: Project) -> Write:
    """Writes `configs/NAME.yaml`."""

    def write_config(name: str, text: str) -> Path:
        path = project.root / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_config


@pytest.fixture
def load(project: Project) -> Callable[..., Config]:
    """Loads a configuration of the project with the given overrides and, unless said, an empty environment."""

    def load_here(name: str, *overrides: str, environ: dict[str, str] | None = None) -> Config:
        return load_config(name, overrides, environ=environ or {}, project=project)

    return load_here


@pytest.fixture
def problems(load: Callable[..., Config]) -> Callable[..., list[Problem]]:
    """All that is wrong with a configuration of the project."""

    def problems_of(name: str, *overrides: str, environ: dict[str, str] | None = None) -> list[Problem]:
        with pytest.raises(ConfigError) as caught:
            load(name, *overrides, environ=environ)
        return caught.value.problems

    return problems_of
