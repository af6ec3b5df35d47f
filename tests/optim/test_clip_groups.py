"""Clipping by groups and by value, and the norms that are logged."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.processes import together
from support.tasks import linear, make_trainer, points
from torch import nn

from flambeau.config.sections import ClipSettings, TrainerSettings
from flambeau.errors import UsageError
from flambeau.optim import Clipping
from flambeau.training.guard import NonFiniteError


def net(*, double: bool = False) -> nn.Sequential:
    """Three layers with gradients of one, two and three everywhere."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    if double:
        model.double()
    for number, layer in enumerate(model, 1):
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, float(number))
    return model


def clipping(model: nn.Module, **settings: Any) -> Clipping:
    settings["clip"] = [ClipSettings(**group) for group in settings.get("clip", [])]
    return Clipping(model, TrainerSettings(epochs=1, **settings)).of(list(model.parameters()))


def norm_of(module: nn.Module) -> float:
    gradients = [parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None]
    return float(torch.linalg.vector_norm(torch.cat(gradients)))


def test_each_group_is_clipped_by_itself_and_the_rest_not_at_all() -> None:
    """Against torch's own clipping of the same parameters; the norms are those before."""
    model, torchs = net(), net()
    before = {name: norm_of(layer) for name, layer in model.named_children()}
    total, norms = clipping(model, clip=[{"pattern": "0.*", "norm": 0.5}, {"pattern": "2.*", "value": 0.25}]).clip()
    nn.utils.clip_grad_norm_(torchs[0].parameters(), 0.5)
    nn.utils.clip_grad_value_(torchs[2].parameters(), 0.25)
    for parameter, other in zip(model.parameters(), torchs.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad)  # type: ignore[arg-type]
    assert {name: float(norm) for name, norm in norms.items()} == pytest.approx(
        {"0.*": before["0"], "2.*": before["2"]}
    )
    assert float(total) == pytest.approx(math.hypot(*before.values()))


def test_groups_are_chosen_as_those_of_the_optimizer_are() -> None:
    """By class and dimensions too, the narrower first, each parameter in one; with a name for the log."""
    model = net()
    groups = [{"ndim": 1, "norm": 0.1, "name": "biases"}, {"type": "Linear", "norm": 100.0}]
    _, norms = clipping(model, clip=groups).clip()
    assert set(norms) == {"biases", "Linear"}
    biases = [parameter.grad for parameter in model.parameters() if parameter.ndim == 1]
    assert float(torch.linalg.vector_norm(torch.cat(biases))) == pytest.approx(0.1, rel=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip": [{"pattern": "0.*"}]}, "neither norm nor value"),
        ({"clip": [{"pattern": "0.*", "norm": 1.0, "value": 1.0}]}, "both norm and value"),
        ({"clip": [{"pattern": "9.*", "norm": 1.0}]}, "trainer.clip: the pattern '9.*' matches no parameter"),
        ({"clip": [{"pattern": "0.*", "norm": 1.0}, {"ndim": 1, "norm": 2.0}]}, "neither lies within the other"),
        ({"clip": [{"pattern": "0.*", "norm": 1.0}], "clip_norm": 1.0}, "both clip_norm and clip are given"),
        ({"clip_value": 1.0, "clip_norm": 1.0}, "both clip_norm and clip_value are given"),
    ],
)
def test_what_cannot_be_meant_is_an_error(settings: dict[str, Any], message: str) -> None:
    """Groups of nothing, overlapping groups, and two ways to clip at once."""
    with pytest.raises(UsageError, match=message.replace("*", r"\*")):
        clipping(net(), **settings)


def test_the_norms_are_in_the_record() -> None:
    """Of all gradients and of each group, as they were before."""
    trainer = make_trainer(clip=[ClipSettings(pattern="weight", norm=1e-3), ClipSettings(pattern="bias", norm=1e-3)])
    trainer.fit()
    record = trainer.recorder.history[0]
    parts = [record["train/grad_norm/weight"], record["train/grad_norm/bias"]]
    assert record["train/grad_norm"] > max(parts) > 1e-3


def test_the_norm_is_logged_without_clipping_if_asked() -> None:
    """And the weights are those of a run that does not ask."""
    told, silent = make_trainer(log_grad_norm=True), make_trainer()
    told.fit()
    silent.fit()
    assert told.recorder.history[0]["train/grad_norm"] > 0
    assert "train/grad_norm" not in silent.recorder.history[0]
    assert torch.equal(told.model.weight, silent.model.weight)  # type: ignore[arg-type]


def test_clipping_by_value_does_not_hide_an_infinite_gradient() -> None:
    """Brought to the limit it would look like any other."""

    def broken(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs.sum() * 0).sqrt() + outputs.mean()  # the gradient of a root at 0 is infinite, times 0: NaN

    with pytest.raises(NonFiniteError, match="gradient of"):
        make_trainer(criterion=broken, clip_value=0.1).fit()
    model = net()
    model[1].weight.grad[0, 0] = math.inf
    norm, _ = clipping(model, clip_value=0.1).clip()
    assert not math.isfinite(norm)
    assert model[1].weight.grad[0, 0] == math.inf


def _train() -> Any:
    """A short run in this world: the weights and the norms in its record."""
    model = linear(dtype=torch.float64)
    trainer = make_trainer(
        model,
        points(24, dtype=torch.float64),
        epochs=2,
        precision="fp64",
        clip=[ClipSettings(pattern="weight", norm=0.05), ClipSettings(pattern="bias", value=0.01)],
        log_every=1,
    )
    trainer.fit()
    norms = [record.get("train/grad_norm/weight") for record in trainer.recorder.history]
    return model.weight.detach().tolist(), norms


@pytest.mark.slow
def test_two_processes_clip_what_one_does() -> None:
    """Groups of the gradients of the global batch: the same weights and norms."""
    ((weight, norms),) = together(1, _train)
    pair = together(2, _train)
    assert pair[0][0] == pair[1][0]
    torch.testing.assert_close(torch.tensor(pair[0][0]), torch.tensor(weight), rtol=1e-10, atol=1e-12)
    assert pair[0][1] == pytest.approx(norms, rel=1e-6)
