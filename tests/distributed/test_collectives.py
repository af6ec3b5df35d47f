"""What processes say to each other in a steady step: the gradients, and nothing else."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from support.processes import together
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import TensorDataset

from flambeau import Trainer
from flambeau.config.sections import EmaSettings
from flambeau.metrics import Accuracy
from flambeau.training.callback import Callback

FIRST, STEPS = 12, 8


class Listening(Callback):
    """Notes every collective, of whichever thread and process group, from step `FIRST` on for `STEPS` steps."""

    def __init__(self) -> None:
        self.profiler = profile(activities=[ProfilerActivity.CPU])
        self.heard: Counter[str] = Counter()

    def on_step_end(self, trainer: Trainer) -> None:
        if trainer.state.step == FIRST:
            self.profiler.start()
        elif trainer.state.step == FIRST + STEPS:
            self.profiler.stop()
            events = self.profiler.events() or []
            self.heard = Counter(event.name for event in events if event.name.startswith("c10d::"))


def network(*, normalised: bool = False) -> nn.Module:
    torch.manual_seed(0)
    norm = [nn.BatchNorm1d(16)] if normalised else []
    return nn.Sequential(nn.Linear(6, 16), *norm, nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4))


def collectives(options: dict[str, Any], normalised: bool = False) -> dict[str, float]:
    """Collectives a step in a run with all that ships on, by name."""
    model = network(normalised=normalised)
    data = TensorDataset(torch.randn(4096, 6), torch.randint(0, 4, (4096,)))
    listening = Listening()
    Trainer(
        model,
        data,
        nn.CrossEntropyLoss(),
        torch.optim.AdamW(model.parameters()),
        val_data=data,
        metrics={"accuracy": Accuracy()},
        callbacks=[listening],
        device="cpu",
        batch_size=32,
        **{
            "steps": FIRST + STEPS + 1,
            "log_every": 1000,
            "progress": False,
            "clip_norm": 1.0,
            "ema": EmaSettings(),
            **options,
        },
    ).fit()
    return {name: count / STEPS for name, count in listening.heard.items()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate": 4},
        {"static_graph": True},
        {"nan_policy": "skip"},
        {"precision": "bf16"},
        {"check_replicas_every": 4},
    ],
    ids=str,
)
def test_a_steady_step_exchanges_gradients_once_and_nothing_else(options: dict[str, Any]) -> None:
    """One message for a model of one bucket, under accumulation too; the units of the loss travel in it."""
    for heard in together(2, collectives, options):
        assert heard == {"c10d::allreduce_": 1}


def test_batch_norm_over_all_processes_is_what_costs_more() -> None:
    """One exchange forward and one backward for each, unless they are left to each process."""
    for heard in together(2, collectives, {}, True):
        assert heard == {"c10d::allreduce_": 3}
