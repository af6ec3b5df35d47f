"""The callback `gradients`: sizes of what flows through a model, in the record, when they are due."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import together
from support.projects import InProcess
from support.tasks import linear, make_trainer, points, weights
from support.trackers import Numbers
from torch import nn

from flambeau import Callback, Trainer
from flambeau.callbacks import Gradients, gradients
from flambeau.errors import UsageError


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 3)))


class Witness(Callback):
    """Computes the same by itself."""

    def __init__(self) -> None:
        self.norms: dict[int, float] = {}
        self.own: dict[int, float] = {}

    def on_gradients(self, trainer: Trainer) -> None:
        every = [parameter.grad for parameter in trainer.model.parameters()]
        self.norms[trainer.current_step] = torch.cat([g.flatten() for g in every if g is not None]).norm().item()
        own = [parameter.grad for parameter in trainer.model[2][0].parameters()]  # type: ignore[index, union-attr]
        self.own[trainer.current_step] = torch.cat([g.flatten() for g in own if g is not None]).norm().item()


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"clip_norm": 0.1}], ids=str)
def test_the_norms_are_those_of_what_the_optimizer_gets(options: Any) -> None:
    """Of all micro-batches together, and clipped; at every second step, in the record that follows."""
    witness = Witness()
    trainer = make_trainer(
        network(), epochs=2, log_every=1, callbacks=[witness, Gradients(every=2, weights=True)], **options
    )
    trainer.fit()
    records = {record["step"]: record for record in trainer.recorder.history}
    for step in (2, 4, 6):
        assert records[step]["gradients/all"] == pytest.approx(witness.norms[step], rel=1e-5)
        assert records[step]["gradients/2.0"] == pytest.approx(witness.own[step], rel=1e-5)
        assert {name for name in records[step] if name.startswith("weights/")} == {
            "weights/0",
            "weights/2.0",
            "weights/2.1",
        }
    for step in (1, 3, 5):
        assert not [name for name in records[step] if "/" in name and name.startswith(("gradients", "weights"))]


def test_modules_are_chosen_by_pattern() -> None:
    trainer = make_trainer(network(), log_every=3, callbacks=[Gradients(every=1, modules=["2.*"])])
    trainer.fit()
    (record,) = trainer.recorder.history
    assert {name for name in record if name.startswith("gradients/")} == {
        "gradients/all",
        "gradients/2.0",
        "gradients/2.1",
    }


def test_activations_are_the_root_mean_square_of_outputs() -> None:
    """Of a linear model, whose outputs are known; the dry batch and validations leave none."""
    model = linear()
    data = points()
    with torch.no_grad():
        expected = model(data.tensors[0][:8]).square().mean().sqrt().item()
    trainer = make_trainer(model, data, val_data=data, log_every=1, callbacks=[Gradients(every=1, activations=True)])
    trainer.fit()
    first = next(record for record in trainer.recorder.history if "activations/Linear" in record)
    assert first["step"] == 1 and first["activations/Linear"] == pytest.approx(expected, rel=1e-5)
    assert not model._forward_hooks


def test_a_run_that_is_looked_at_trains_to_the_same_bits(tmp_path: Path) -> None:
    watched = make_trainer(
        network(), epochs=2, callbacks=[Gradients(every=1, weights=True, activations=True, histograms=True)]
    )
    plain = make_trainer(network(), epochs=2)
    watched.fit()
    plain.fit()
    assert torch.equal(weights(watched.model), weights(plain.model))


def test_steps_that_are_not_due_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hook stands on the model, and nothing is computed."""
    computed: list[int] = []
    model = network()

    class Look(Callback):
        def on_gradients(self, trainer: Trainer) -> None:
            computed.append(len(model[0]._forward_hooks))

    real = gradients._norm

    def counted(*given: Any) -> torch.Tensor:
        computed.append(-1)
        return real(*given)

    monkeypatch.setattr(gradients, "_norm", counted)
    make_trainer(model, epochs=2, callbacks=[Look(), Gradients(every=4, activations=True)]).fit()
    assert computed == [0, 0, 0, 1, -1, -1, -1, -1, 0, 0]  # all and three modules, in step 4 alone


def test_histograms_go_to_the_trackers_at_their_step() -> None:
    class Histograms(Numbers):
        def log_histogram(self, tag: str, values: Any, step: int) -> None:
            self.given.append((tag, float(values.numel()), step))

    tracker = Histograms()
    make_trainer(
        linear(), callbacks=[Gradients(every=3, weights=True, activations=True, histograms=True)], trackers=[tracker]
    ).fit()
    found = [tracker.of(f"{kind}_histogram/Linear") for kind in ("gradients", "weights", "activations")]
    assert found == [{3: 15.0}, {3: 15.0}, {3: 12.0}]  # elements: weights and biases, outputs of 4 samples


def test_a_run_that_is_killed_and_goes_on_writes_the_same_record(flambeau: InProcess, monkeypatch: Any) -> None:
    """A look at step 7 is written at step 10, and a kill between is not to lose it."""
    options = ["callbacks.gradients={every: 7, weights: true, activations: true}", "checkpoint.every_steps=4"]
    flambeau("train", "tiny", *options, "--run-dir", "whole")
    monkeypatch.setenv("FAIL_AT", "9")
    with pytest.raises(RuntimeError, match="own failure"):
        flambeau("train", "tiny", *options, "--run-dir", "killed")
    monkeypatch.delenv("FAIL_AT")
    flambeau("resume", "killed")
    whole, killed = (Path(run, "metrics.jsonl").read_bytes() for run in ("whole", "killed"))
    assert killed == whole
    assert sum("gradients/body.0" in record for record in map(json.loads, whole.splitlines())) >= 6


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ({"modules": ["2.9"]}, {}, r"no module of the model is called '2\.9'\n  did you mean '2"),
        ({"activations": True}, {"compile": True}, "activations of a compiled model"),
    ],
)
def test_what_cannot_be_looked_at_is_refused_before_the_first_step(arguments: Any, options: Any, message: str) -> None:
    trainer = make_trainer(network(), callbacks=[Gradients(**arguments)], dry_batch=False, **options)
    with pytest.raises(UsageError, match=message):
        trainer.fit()
    assert trainer.state.step == 0


def looked_at() -> list[dict[str, Any]]:
    model = network()
    trainer = make_trainer(model, epochs=1, log_every=1, callbacks=[Gradients(every=1)])
    trainer.fit()
    return trainer.recorder.history


def test_two_processes_record_the_norms_of_one() -> None:
    """The gradients are those of the global batch, and counted once."""
    alone, together_ = looked_at(), together(2, looked_at)[0]
    for one, two in zip(alone, together_, strict=True):
        assert two["gradients/all"] == pytest.approx(one["gradients/all"], rel=1e-5)
        assert two["gradients/2.1"] == pytest.approx(one["gradients/2.1"], rel=1e-5)
