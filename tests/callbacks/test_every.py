"""`every` and `lambda`: functions of one's own, called when they are due."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import together
from support.projects import InProcess
from support.tasks import make_trainer, points
from torch.utils.data import IterableDataset

from flambeau import Callback, Trainer
from flambeau.callbacks import Every, LambdaCallback
from flambeau.errors import UsageError


def calls_of(**options: Any) -> list[int]:
    """The steps of the calls in a run of six steps, three an epoch, of 8, 8 and 4 samples."""
    seen: list[int] = []
    every = Every(lambda trainer: seen.append(trainer.state.step), **options)
    make_trainer(epochs=2, val_data=points(), validate_every_steps=2, callbacks=[every]).fit()
    return seen


class TestEvery:
    @pytest.mark.parametrize(
        ("options", "steps"),
        [
            ({"steps": 2}, [2, 4, 6]),
            ({"epochs": 1}, [3, 6]),
            ({"epochs": 2}, [6]),
            ({"samples": 8}, [1, 2, 4, 5, 6]),  # 8, 16, 20, 28, 36, 40 samples are seen
            ({"samples": 20}, [3, 6]),
            ({"samples": 100}, []),
            ({"samples": 1}, [1, 2, 3, 4, 5, 6]),
            ({"validations": 1}, [2, 4, 6]),
            ({"validations": 2}, [4]),
        ],
    )
    def test_it_calls_its_function_when_that_is_due(self, options: Any, steps: list[int]) -> None:
        assert calls_of(**options) == steps

    @pytest.mark.parametrize("options", [{"samples": 12}, {"validations": 2}, {"epochs": 1}])
    @pytest.mark.parametrize("at", [1, 2, 3, 4])
    def test_a_resumed_run_calls_it_after_the_same_steps(self, options: Any, at: int, tmp_path: Path) -> None:
        class Leave(Callback):
            def on_step_end(self, trainer: Trainer) -> None:
                if trainer.state.step == at:
                    trainer.preempt("a test")

        seen: list[int] = []
        for others, resume in (({"leave": Leave()}, False), ({}, True)):
            every = Every(lambda trainer: seen.append(trainer.state.step), **options)
            make_trainer(
                epochs=2,
                val_data=points(),
                validate_every_steps=2,
                callbacks={"every": every, **others},
                run_dir=tmp_path / "run",
            ).fit(resume=resume)
        assert seen == calls_of(**options)

    def test_several_processes_call_it_after_the_same_steps_as_one(self) -> None:
        """Every k samples of all processes together, not of each."""
        alone = calls_of(samples=12)
        assert together(2, calls_of_samples, 12) == [alone, alone]

    def test_a_configuration_names_the_function_by_its_import_path(self, flambeau: InProcess) -> None:
        """And may have several of them, under labels of their own."""
        note = f"{flambeau.project.module}.note"
        flambeau(
            "train",
            "tiny",
            "trainer.epochs=2",
            f"callbacks.often={{name: every, call: {note}, steps: 10}}",
            f"callbacks.once={{name: every, call: {note}, epochs: 2}}",
        )
        assert (flambeau.project.root / "calls.txt").read_text() == "10 20 24 "

    def test_it_wants_one_rhythm(self) -> None:
        for options in ({}, {"steps": 1, "epochs": 1}):
            with pytest.raises(UsageError, match="give one of steps, epochs, samples, validations"):
                Every(print, **options)

    def test_a_rhythm_that_the_run_does_not_have_is_refused(self) -> None:
        """Not left without a call in silence."""

        class Endless(IterableDataset[Any]):
            def __iter__(self) -> Any:
                return iter(lambda: (torch.zeros(4), torch.tensor(0)), None)

        with pytest.raises(UsageError, match="the length of the training data is not known"):
            make_trainer(train_data=Endless(), steps=3, callbacks=[Every(print, epochs=1)])
        with pytest.raises(UsageError, match="there is no validation data"):
            make_trainer(callbacks=[Every(print, validations=1)])

    @pytest.mark.parametrize(
        ("path", "said"),
        [
            ("MODULE.note_nothing", "does not exist"),
            ("MODULE.notes", "did you mean 'note'?"),
            ("note", "is no import path: write module.function"),
            ("os.remove", "a configuration is not a way to run code"),
            ("torch.load", "is refused"),
            ("torch.manual_seed", "torch's own"),
            ("nowhere.at_all", "nowhere is not installed"),
        ],
    )
    def test_a_wrong_function_is_refused_before_torch_is_needed(
        self, path: str, said: str, flambeau: InProcess
    ) -> None:
        """With its key and the nearest right name, by the check of the configuration."""
        path = path.replace("MODULE", flambeau.project.module)
        answer = flambeau("config", "tiny", f"callbacks.every={{call: {path}, steps: 1}}", expect=2)
        assert "callbacks.every.call" in answer.err
        assert said in answer.err

    def test_a_function_of_a_refused_module_is_refused_under_any_name(self, flambeau: InProcess) -> None:
        """A project's own file may have imported it."""
        parts = next(flambeau.project.root.glob("parts_*.py"))
        parts.write_text(parts.read_text() + "\nfrom shutil import rmtree as tidy\n")
        answer = flambeau(
            "train", "tiny", f"callbacks.every={{call: {flambeau.project.module}.tidy, steps: 1}}", expect=2
        )
        assert "shutil.rmtree" in answer.err
        assert not (flambeau.project.root / "runs").exists()

    def test_what_is_called_must_be_a_function(self, flambeau: InProcess) -> None:
        answer = flambeau("config", "tiny", "callbacks.every={call: 3, steps: 1}", expect=2)
        assert "expected the import path of a function, not 3" in answer.err


def calls_of_samples(samples: int) -> list[int]:
    return calls_of(samples=samples)


class TestLambda:
    def test_its_functions_are_called_as_hooks_are(self) -> None:
        seen: list[Any] = []
        callback = LambdaCallback(
            on_step_end=lambda trainer: seen.append(trainer.state.step),
            on_validation_end=lambda trainer, scores: seen.append(sorted(scores)),
            on_exit=lambda trainer, outcome: seen.append(outcome),
        )
        make_trainer(val_data=points(), callbacks=[callback]).fit()
        assert seen == [1, 2, ["val/loss"], 3, "finished"]

    def test_a_hook_without_a_function_costs_nothing(self) -> None:
        hooks = make_trainer(callbacks=[LambdaCallback(on_fit_start=print)]).hooks
        assert len(hooks.fit_start) == 1
        assert hooks.step_end == ()

    def test_a_configuration_names_functions(self, flambeau: InProcess) -> None:
        flambeau("train", "tiny", f"callbacks={{lambda: {{on_epoch_end: {flambeau.project.module}.note}}}}")
        assert (flambeau.project.root / "calls.txt").read_text() == "12 24 36 48 "

    def test_a_mistyped_hook_is_refused_with_the_right_one(self, flambeau: InProcess) -> None:
        answer = flambeau("config", "tiny", "callbacks={lambda: {on_epoch_edn: a.b}}", expect=2)
        assert "did you mean 'on_epoch_end'?" in answer.err

    def test_an_unknown_callback_is_refused_with_the_nearest(self, flambeau: InProcess) -> None:
        """No name is passed over in silence, and no other object of a module is one."""
        answer = flambeau("train", "tiny", "callbacks={evry: {steps: 1}}", expect=2)
        assert "no callback is called 'evry'; did you mean 'every'?" in answer.err
        answer = flambeau("train", "tiny", f"callbacks={{note: {{name: {flambeau.project.module}.note}}}}", expect=2)
        assert "a callback is a class, and this is a function" in answer.err

    def test_without_a_function_there_is_nothing_to_do(self) -> None:
        with pytest.raises(UsageError, match="no function is given"):
            LambdaCallback()
