"""What is frozen stays as it is, for good or until a step, through resumes and on any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import together
from support.projects import InProcess
from support.states import assert_same_runs, final_state
from support.tasks import points
from torch import nn

from flambeau import Callback, Trainer
from flambeau.config.sections import EmaSettings, TrainerSettings, UnfreezeSettings
from flambeau.errors import UsageError
from flambeau.training.freeze import Freezing


class Net(nn.Module):
    """A backbone of two stages, each with what behaves otherwise in training, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)

        def stage() -> nn.Module:
            return nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Tanh())

        self.backbone = nn.Sequential(stage(), stage())
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(inputs))


class Watch(Callback):
    """What a run looks like after each step: weights, and which modules are in training mode."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.training: list[set[str]] = []

    def on_step_end(self, trainer: Trainer) -> None:
        self.weights.append({name: item.clone() for name, item in trainer.model.state_dict().items()})
        self.training.append({name for name, module in trainer.model.named_modules() if module.training})

    def moves(self, name: str) -> list[int]:
        """The steps, from 2, that changed a tensor."""
        pairs = enumerate(zip(self.weights, self.weights[1:], strict=False), 2)
        return [step for step, (one, other) in pairs if not torch.equal(one[name], other[name])]


def trained(model: nn.Module, *, optimizer: Any = torch.optim.AdamW, **options: Any) -> tuple[Trainer, Watch]:
    """Six steps of ten samples, five samples an epoch's end apart: epochs of two steps."""
    watch = Watch()
    options = {"steps": 6, "batch_size": 10, "val_data": points(10), "callbacks": [watch], **options}
    trainer = Trainer(
        model, points(20), nn.CrossEntropyLoss(), optimizer(model.parameters(), lr=0.1) if optimizer else None,
        device="cpu", progress=False, **options,
    )  # fmt: skip
    trainer.fit()
    return trainer, watch


STATISTICS = "backbone.0.1.running_mean"
SECOND = {"unfreeze": [UnfreezeSettings(pattern="backbone.1", after_steps=3)]}


class TestForGood:
    def test_frozen_modules_stand_still_in_every_part_of_a_run(self, flambeau: InProcess) -> None:
        """Weights, batch norm's statistics and the average stay what they were, and the optimizer has none of it."""
        settings = ("trainer.freeze=[body]", "trainer.ema={decay: 0.5}", "optimizer.weight_decay=0.5")
        flambeau("train", "tiny", "--run-dir", "first", "trainer.epochs=1")
        start = "pretrained={path: first, exclude: [head]}"
        flambeau("train", "tiny", "--run-dir", "run", *settings, start)
        before = final_state(flambeau.project.root / "first")["model"]
        after = final_state(flambeau.project.root / "run")
        for name, tensor in before.items():
            is_frozen = name.startswith("body")
            assert torch.equal(after["model"][name], tensor) == is_frozen, name
            assert torch.equal(after["ema"][name], tensor) == is_frozen, name
        assert [len(group["params"]) for group in after["optimizer"]["param_groups"]] == [2]

    def test_the_dropout_of_a_frozen_module_is_off(self) -> None:
        """The loss of a step is that of the model in evaluation mode."""
        model = Net()
        expected = nn.functional.cross_entropy(model.eval()(points(20)[:][0]), points(20)[:][1]).item()
        trainer, _ = trained(model.train(), freeze=["backbone"], steps=1, batch_size=20)
        assert trainer.recorder.history[0]["train/loss"] == pytest.approx(expected, rel=1e-6)

    def test_freeze_parameters_leaves_modules_in_their_mode(self) -> None:
        model = Net()
        before = {name: item.clone() for name, item in model.state_dict().items()}
        _, watch = trained(model, freeze_parameters=["backbone.0.*", "head.bias"], optimizer=None)
        last = watch.weights[-1]
        assert torch.equal(last["backbone.0.0.weight"], before["backbone.0.0.weight"])
        assert torch.equal(last["head.bias"], before["head.bias"])
        assert not torch.equal(last["head.weight"], before["head.weight"])
        assert not torch.equal(last[STATISTICS], before[STATISTICS]), "batch norm goes on to learn its statistics"
        assert "backbone.0.2" in watch.training[0]

    def test_parameters_frozen_for_good_are_in_no_optimizer(self) -> None:
        trainer, _ = trained(Net(), freeze_parameters=["*.bias"], optimizer=None)
        assert [p for group in trainer.optimizer.param_groups for p in group["params"]] == [
            item for name, item in trainer.model.named_parameters() if not name.endswith("bias")
        ]

    def test_a_train_of_ones_own_is_respected(self) -> None:
        """A model may hold a part of itself in evaluation mode."""

        class Own(Net):
            def train(self, mode: bool = True) -> Own:
                super().train(mode)
                self.backbone[0].eval()
                return self

        _, watch = trained(Own(), freeze=["backbone.1"], unfreeze=SECOND["unfreeze"])
        assert all("backbone.0" not in training for training in watch.training)
        assert ["backbone.1" in training for training in watch.training] == [False] * 3 + [True] * 3


class TestUntilAStep:
    def test_it_is_frozen_before_and_trained_after(self) -> None:
        """Not even decayed: a parameter without a gradient is left alone by the optimizer."""
        model = Net()
        before = {name: item.clone() for name, item in model.state_dict().items()}
        trainer, watch = trained(
            model,
            freeze=["backbone"],
            optimizer=lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.5),
            ema=EmaSettings(decay=0.5),
            **SECOND,
        )
        assert watch.moves("backbone.1.0.weight") == [4, 5, 6]
        assert watch.moves("backbone.1.1.running_mean") == [4, 5, 6]
        assert watch.moves("backbone.0.0.weight") == watch.moves(STATISTICS) == []
        assert torch.equal(watch.weights[2]["backbone.1.0.weight"], before["backbone.1.0.weight"])
        assert ["backbone.1.2" in training for training in watch.training] == [False] * 3 + [True] * 3
        assert not any("backbone" in training for training in watch.training)
        average = trainer.ema.model.state_dict()  # type: ignore[union-attr]
        assert torch.equal(average["backbone.0.0.weight"], before["backbone.0.0.weight"])
        assert not torch.equal(average["backbone.1.0.weight"], before["backbone.1.0.weight"])

    def test_an_epoch_is_as_many_steps_as_the_data_has(self) -> None:
        """Two here."""
        _, watch = trained(Net(), freeze=["backbone"], unfreeze=[UnfreezeSettings(pattern="*", after_epochs=2)])
        assert watch.moves("backbone.0.0.weight") == watch.moves("backbone.1.0.weight") == [5, 6]

    def test_gradually_stage_by_stage(self) -> None:
        """What several patterns match is trained from the first of them on."""
        stages = [
            UnfreezeSettings(pattern="backbone.1.0", after_steps=2),
            UnfreezeSettings(pattern="backbone", after_steps=4),
        ]
        _, watch = trained(Net(), freeze=["backbone"], unfreeze=stages)
        assert watch.moves("backbone.1.0.weight") == [3, 4, 5, 6]
        assert watch.moves("backbone.1.1.weight") == watch.moves("backbone.0.0.weight") == [5, 6]

    def test_parameters_alone(self) -> None:
        """Their modules' mode never changes."""
        late = [UnfreezeSettings(pattern="backbone.1", after_steps=3)]
        _, watch = trained(Net(), freeze_parameters=["backbone.*"], unfreeze=late)
        assert watch.moves("backbone.1.0.weight") == [4, 5, 6]
        assert watch.moves("backbone.0.0.weight") == []
        assert all("backbone.1" in training for training in watch.training)

    def test_each_group_of_the_optimizer_has_them_from_the_beginning(self, flambeau: InProcess) -> None:
        """With its own learning rate, which the schedule moves for all alike."""
        groups = "optimizer.groups=[{pattern: 'body.*', lr: 0.001}]"
        freezing = ("trainer.freeze=[body]", "trainer.unfreeze=[{pattern: body, after_epochs: 1}]")
        said = flambeau("train", "tiny", "--run-dir", "run", groups, *freezing).out
        state = final_state(flambeau.project.root / "run")["optimizer"]
        assert [(group["initial_lr"], len(group["params"])) for group in state["param_groups"]] == [
            (0.001, 4),
            (0.01, 2),
        ]
        # 48 steps in all, 12 an epoch: Adam has counted only those in which there was a gradient.
        assert [int(item["step"]) for _, item in sorted(state["state"].items())] == [36] * 4 + [48] * 2
        assert "step     13: trained from here on: body.0 (weight, bias), body.1 (weight, bias)" in said

    def test_a_trial_of_memory_is_made_with_all_of_it(self) -> None:
        """A micro-batch that fits the head alone would not fit later."""
        model = Net()
        settings = TrainerSettings(freeze=["backbone"], **SECOND)
        freezing = Freezing(model, settings)
        freezing.at(0)
        with freezing.lifted():
            assert model.backbone[1].training and next(model.backbone[1].parameters()).requires_grad
            assert not next(model.backbone[0].parameters()).requires_grad
        assert not model.backbone[1].training and not next(model.backbone[1].parameters()).requires_grad
        assert 2 < freezing.next <= 3


FREEZING = ("trainer.freeze=[body]", "trainer.unfreeze=[{pattern: body, after_steps: 15}]", "trainer.ema={decay: 0.9}")


class TestResume:
    @pytest.mark.parametrize("step", [6, 15, 16, 30])
    def test_a_run_left_before_at_or_after_the_step_ends_with_the_same_bits(
        self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch, step: int
    ) -> None:
        flambeau("train", "tiny", "--run-dir", "straight", *FREEZING)
        monkeypatch.setenv("PREEMPT_AT", str(step))
        flambeau("train", "tiny", "--run-dir", "run", *FREEZING, expect=75)
        monkeypatch.delenv("PREEMPT_AT")
        flambeau("resume", "run")
        assert_same_runs(flambeau.project.root / "straight", flambeau.project.root / "run")


def train_stages(options: dict[str, Any], run_dir: Path | None = None, leave: int | None = None) -> dict[str, Any]:
    """A run in this process of several; with `leave`, left after that step and resumed."""

    class Leaving(Trainer):
        def advance(self, batch: Any) -> None:
            super().advance(batch)
            if self.state.step == leave:
                self.preempt("a test")

    def make(kind: type[Trainer]) -> Trainer:
        model = Net()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # its numbers are of the process
        return kind(
            model, points(20), nn.CrossEntropyLoss(), torch.optim.AdamW(model.parameters(), lr=0.01),
            val_data=points(10), device="cpu", progress=False, precision="fp64", steps=8, batch_size=10,
            freeze=["backbone"], run_dir=run_dir, check_replicas_every=1, every_steps=1, **options,
        )  # fmt: skip

    trainer = make(Leaving)
    trainer.fit()
    if leave is not None:
        trainer = make(Trainer)
        trainer.fit(resume=True)
    return {name: item.clone() for name, item in trainer.model.state_dict().items()}


STAGES = {
    "unfreeze": [
        UnfreezeSettings(pattern="backbone.1", after_steps=3),
        UnfreezeSettings(pattern="backbone", after_steps=5),
    ]
}


class TestSeveralProcesses:
    """Parameters that get a gradient later than others take part in the exchange of gradients from then on."""

    def test_the_weights_are_those_of_one_process(self) -> None:
        expected = train_stages(STAGES)
        for found in together(2, train_stages, STAGES):
            for name, value in expected.items():
                assert torch.allclose(found[name].double(), value.double(), rtol=1e-10, atol=1e-12), name

    @pytest.mark.slow
    def test_a_resumed_run_ends_with_the_same_bits(self, tmp_path: Path) -> None:
        """Left at the step itself, and between two of them."""
        straight = together(2, train_stages, STAGES)[0]
        for leave in (3, 4):
            resumed = together(2, train_stages, STAGES, tmp_path / str(leave), leave)[0]
            assert all(torch.equal(resumed[name], value) for name, value in straight.items())

    def test_statistics_of_each_process_alone_are_no_drift_of_the_copies(self) -> None:
        """Batch norm that is not synchronised begins to differ when it is no longer frozen."""
        one, other = together(2, train_stages, {**STAGES, "sync_batch_norm": False})
        assert all(torch.equal(one[name], other[name]) for name in one)  # validation has given all the main one's


class TestErrors:
    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"freeze": ["bakbone"]}, "trainer.freeze: 'bakbone' matches no module of the model"),
            ({"freeze_parameters": ["head.wight"]}, "trainer.freeze_parameters: 'head.wight' matches no parameter"),
            ({"unfreeze": [UnfreezeSettings(pattern="head", after_steps=1)]}, "'head' matches nothing that is frozen"),
            ({"unfreeze": [UnfreezeSettings(pattern="backbone")]}, "no time is given for 'backbone'"),
            (
                {"unfreeze": [UnfreezeSettings(pattern="backbone", after_steps=1, after_epochs=1)]},
                "both `after_epochs` and `after_steps` are given",
            ),
            ({"freeze": ["backbone", "head"]}, "nothing of the model would be trained in the first step"),
        ],
    )
    def test_what_has_no_effect_or_no_meaning_is_refused(self, settings: dict[str, Any], text: str) -> None:
        with pytest.raises(UsageError) as caught:
            Freezing(Net(), TrainerSettings(**{"freeze": ["backbone"], **settings}))
        assert text in str(caught.value)

    def test_epochs_need_data_with_a_length(self) -> None:
        settings = TrainerSettings(freeze=["backbone"], unfreeze=[UnfreezeSettings(pattern="*", after_epochs=1)])
        with pytest.raises(UsageError, match=r"no known length.*\n  give after_steps"):
            Freezing(Net(), settings, None)

    def test_a_sharded_model_cannot_be_unfrozen(self, flambeau: InProcess) -> None:
        said = flambeau("train", "tiny", *FREEZING, "trainer.fsdp={}", expect=2).err
        assert "trainer.unfreeze does not go with trainer.fsdp" in said

    def test_the_configuration_is_checked_before_torch_is_imported(self, flambeau: InProcess) -> None:
        said = flambeau("train", "tiny", "trainer.unfreeze=[{patern: body, after_epochs: 0}]", expect=2).err
        assert "trainer.unfreeze.0.patern: unknown setting; did you mean 'pattern'?" in said
        assert "trainer.unfreeze.0.after_epochs: expected an integer of at least 1, not 0" in said
