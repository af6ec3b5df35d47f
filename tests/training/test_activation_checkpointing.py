"""`trainer.activation_checkpointing`: less memory, the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.processes import together
from support.states import assert_same
from support.tasks import make_trainer, points
from torch import nn

from flambeau.config.sections import EmaSettings, FsdpSettings
from flambeau.errors import UsageError


class Layer(nn.Module):
    """Everything that may differ when it is run twice: random numbers, and statistics that it keeps."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear, self.dropout = nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Dropout(0.4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        type(self).calls += 1
        return x + self.dropout(self.linear(self.norm(x)).tanh())


class Net(nn.Module):
    """Layers between two linear maps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)  # type: ignore[no-any-return]


class Naming(Net):
    def fsdp_blocks(self) -> nn.ModuleList:
        return self.layers


def run(checkpointing: Any, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All tensors of model and average at the end, and the record."""
    trainer = make_trainer(
        Naming(), points(22), val_data=points(9, seed=1), epochs=3, ema=EmaSettings(decay=0.8), log_every=2,
        activation_checkpointing=checkpointing, **options,
    )  # fmt: skip
    trainer.fit()
    assert trainer.ema is not None
    states = {"model": trainer.model.state_dict(), "ema": trainer.ema.model.state_dict()}
    return {name: {key: value.clone() for key, value in state.items()} for name, state in states.items()}, (
        trainer.recorder.history
    )


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"precision": "bf16"}], ids=["", "accumulate", "bf16"])
@pytest.mark.parametrize("blocks", [True, ["Layer"]], ids=["by the model", "by class"])
def test_a_run_has_the_same_bits_with_and_without(options: dict[str, Any], blocks: Any) -> None:
    """Dropout draws the same numbers again, and a batch counts once in the running statistics of batch norms."""
    assert_same(run(blocks, **options), run(False, **options))


def test_so_has_one_of_two_processes() -> None:
    """Batch norms, whose statistics are over both, take them again in the backward pass."""
    assert_same(together(2, run, True), together(2, run, False))


def test_blocks_are_computed_again_in_training_alone() -> None:
    """Twice a training step, once a batch of an evaluation."""
    trainer = make_trainer(Naming(), points(8), steps=4, dry_batch=False, activation_checkpointing=True)
    Layer.calls = 0
    trainer.fit()
    assert Layer.calls == 2 * 3 * 4
    Layer.calls = 0
    trainer.evaluate(points(8))
    assert Layer.calls == 3


def test_names_of_parameters_stay() -> None:
    """Checkpoints of runs with and without are the same."""
    trainer = make_trainer(Net(), points(8), activation_checkpointing=["Layer"])
    assert trainer.model.state_dict().keys() == Net().state_dict().keys()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Net, {"activation_checkpointing": True}, "Net does not say what its blocks are.*or give the model a method"),
        (Net, {"activation_checkpointing": ["Layr"]}, "activation_checkpointing: no module of Net.*'Layr'.*Layer"),
        (Naming, {"activation_checkpointing": True, "fsdp": FsdpSettings()}, "trainer.fsdp.activation_checkpointing"),
    ],
)
def test_what_cannot_be_done_is_refused_before_training(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}"):
        make_trainer(model(), points(8), **options)
