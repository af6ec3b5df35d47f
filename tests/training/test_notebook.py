"""The Python side: a trainer without a configuration, and runs that lie on disk."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.projects import InProcess
from support.states import assert_same, final_state
from support.tasks import linear, make_trainer, points, weights
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import flambeau as package
from flambeau import Callback, Trainer, load_model, load_run, load_runs
from flambeau.checkpoint import Checkpoint
from flambeau.errors import CheckpointError, MissingExtraError, RunFolderError, UsageError
from flambeau.run_folder import read_metrics


class TestTrainer:
    def test_the_example_of_the_documentation_runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        net = linear()
        trainer = Trainer(
            model=net,
            train_data=points(30),
            val_data=points(10, seed=1),
            criterion=nn.CrossEntropyLoss(),
            optimizer=torch.optim.AdamW(net.parameters()),
            epochs=3,
            batch_size=64,
        )
        trainer.fit()
        assert set(trainer.evaluate(points(10, seed=2))) == {"loss"}

    def test_without_a_run_folder_nothing_is_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        trainer = make_trainer(epochs=2, val_data=points(), every_steps=1)
        trainer.fit()
        assert [record["step"] for record in trainer.recorder.history if "val/loss" in record] == [3, 6]
        trainer.fit(resume=True)
        assert list(tmp_path.iterdir()) == []

    def test_it_trains_as_a_hand_written_loop_does(self) -> None:
        model, data = linear(), points(20)
        trainer = make_trainer(model, data, optimizer=lambda m: torch.optim.AdamW(m.parameters(), lr=0.01), epochs=3)
        trainer.fit()
        other = linear()
        optimizer = torch.optim.AdamW(other.parameters(), lr=0.01)
        for _ in range(3):
            for inputs, targets in DataLoader(data, batch_size=8):
                nn.functional.cross_entropy(other(inputs), targets).backward()
                optimizer.step()
                optimizer.zero_grad()
        assert torch.equal(weights(model), weights(other))

    def test_the_result_is_a_function_of_the_seed(self) -> None:
        def trained(seed: int) -> torch.Tensor:
            model = nn.Sequential(nn.Dropout(0.5), linear())
            torch.rand(seed + 1)  # whatever was drawn before
            make_trainer(model, shuffle=True, seed=seed, epochs=2).fit()
            return weights(model)

        assert torch.equal(trained(1), trained(1))
        assert not torch.equal(trained(1), trained(2))

    def test_fit_with_resume_goes_on_where_it_was_left_and_begins_where_nothing_is(self, tmp_path: Path) -> None:
        """One and the same cell, run again after a restart."""

        class Leave(Callback):
            def on_step_end(self, trainer: Trainer) -> None:
                if trainer.state.step == 4:
                    trainer.preempt("a test")

        whole = make_trainer(nn.Sequential(nn.Dropout(0.3), linear()), epochs=3, shuffle=True)
        whole.fit()
        for callbacks, step in (([Leave()], 4), ([], 9), ([], 9)):
            model = nn.Sequential(nn.Dropout(0.3), linear())
            trainer = make_trainer(model, epochs=3, shuffle=True, callbacks=callbacks, run_dir=tmp_path / "run")
            assert trainer.fit(resume=True).step == step
        assert torch.equal(weights(whole.model), weights(model))
        assert [r["step"] for r in read_metrics(tmp_path / "run/metrics.jsonl")] == [9]

    def test_resume_takes_an_empty_folder_for_a_new_run(self, tmp_path: Path) -> None:
        """Schedulers' scripts make the folder first."""
        (tmp_path / "run").mkdir()
        assert make_trainer(run_dir=tmp_path / "run").fit(resume=True).step == 3

    def test_a_used_folder_is_refused_unless_resuming(self, tmp_path: Path) -> None:
        make_trainer(run_dir=tmp_path / "run").fit()
        with pytest.raises(RunFolderError, match="holds a run already"):
            make_trainer(run_dir=tmp_path / "run").fit()
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "thesis.tex").touch()
        with pytest.raises(RunFolderError, match="not empty"):
            make_trainer(run_dir=tmp_path / "other").fit()

    def test_two_trainers_cannot_train_in_one_folder_at_once(self, tmp_path: Path) -> None:
        class Intrude(Callback):
            def on_step_end(self, trainer: Trainer) -> None:
                with pytest.raises(RunFolderError, match="in use"):
                    make_trainer(run_dir=tmp_path / "run").fit(resume=True)

        assert make_trainer(steps=1, callbacks=[Intrude()], run_dir=tmp_path / "run").fit().step == 1

    def test_a_longer_schedule_is_not_planned_anew_in_silence(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from flambeau.optim import Cosine

        make_trainer(scheduler=Cosine, epochs=2, run_dir=tmp_path / "run").fit()
        capsys.readouterr()
        make_trainer(scheduler=Cosine, epochs=4, run_dir=tmp_path / "run").fit(resume=True)
        said = capsys.readouterr()
        assert "planned over 6 steps" in said.out + said.err

    def test_a_trainer_is_importable_without_the_rest(self) -> None:
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match="no attribute 'Trianer'"):
            package.Trianer  # noqa: B018


class TestForms:
    """Data as plain PyTorch has it."""

    def test_batches_of_dicts(self) -> None:
        class Samples(Dataset[Any]):
            def __len__(self) -> int:
                return 20

            def __getitem__(self, index: int) -> Any:
                inputs, target = points()[index]
                return {"inputs": {"points": inputs, "name": f"sample {index}"}, "targets": {"class": target}}

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = linear()

            def forward(self, inputs: Any) -> Any:
                assert isinstance(inputs["name"], list)
                return {"scores": self.layer(inputs["points"])}

        def criterion(outputs: Any, targets: Any) -> torch.Tensor:
            return nn.functional.cross_entropy(outputs["scores"], targets["class"])

        model = Net()
        trainer = make_trainer(model, Samples(), criterion, val_data=Samples(), epochs=2, accumulate=2)
        trainer.fit()
        usual = make_trainer(linear(), epochs=2)
        usual.fit()
        torch.testing.assert_close(weights(model), weights(usual.model))

    @pytest.mark.parametrize("form", ["TensorDataset", "list", "Subset", "workers"])
    def test_any_map_style_dataset(self, form: str) -> None:
        tensors = points(20)
        data: Any = {
            "TensorDataset": tensors,
            "list": [tensors[index] for index in range(20)],
            "Subset": torch.utils.data.Subset(points(40), range(20)),
            "workers": [tensors[index] for index in range(20)],
        }[form]
        usual = make_trainer(linear(), tensors)
        usual.fit()
        trainer = make_trainer(linear(), data, workers=2 if form == "workers" else 0)
        trainer.fit()
        if form != "Subset":
            assert torch.equal(weights(trainer.model), weights(usual.model))

    def test_transforms_act_on_samples_and_batches(self) -> None:
        seen: list[float] = []

        def shift(sample: Any) -> Any:
            return sample[0] + 100, sample[1]

        def watch(batch: Any) -> Any:
            seen.append(float(batch.inputs.mean()))
            return batch

        trainer = make_trainer(train_transform=shift, batch_transform=watch, val_data=points(), dry_batch=False)
        trainer.fit()
        training, evaluation = seen[:3], seen[3:]
        assert min(training) > 90
        assert max(evaluation) < 10


class Broken(Callback):
    def on_step_end(self, trainer: Trainer) -> None:
        raise ArithmeticError("mine")


@pytest.fixture
def run(flambeau: InProcess) -> Path:
    """A finished run of the small project, its best checkpoint before its last."""
    flambeau("train", "tiny", "--run-dir", "run", "trainer.ema={decay: 0.9}", "checkpoint.keep_last=9")
    return flambeau.project.root / "run"


class TestRuns:
    def test_a_run_tells_its_configuration_its_record_and_how_it_stands(self, run: Path) -> None:
        loaded = load_run(run)
        assert loaded.config.values["model"]["name"] == "dropnet"
        assert loaded.config.name == "tiny"
        assert loaded.status.state == "finished"
        assert loaded.metrics() == read_metrics(run / "metrics.jsonl")
        assert loaded.metrics()[-1]["step"] == 48

    def test_its_record_comes_as_columns_and_as_curves(self, run: Path) -> None:
        """A row a step; what was not measured there is NaN."""
        loaded = load_run(run)
        columns, records = loaded.columns(), loaded.metrics()
        steps = sorted({record["step"] for record in records})
        assert next(iter(columns)) == "step"
        assert columns["step"].tolist() == steps
        assert {len(column) for column in columns.values()} == {len(steps)}
        for name, column in columns.items():
            found = {record["step"]: record[name] for record in records if name in record}
            assert {step: value for step, value in zip(steps, column, strict=True) if not np.isnan(value)} == found
        at, values = loaded.curve("val/accuracy")
        assert at.tolist() == [12, 24, 36, 48]
        assert values.tolist() == [record["val/accuracy"] for record in records if "val/accuracy" in record]
        with pytest.raises(UsageError, match=r"no record of 'val/acc'\n  there are .*val/accuracy"):
            loaded.curve("val/acc")

    def test_pandas_gets_the_same_table(self, run: Path) -> None:
        pytest.importorskip("pandas", reason="the extra pandas is not installed")
        frame = load_run(run).frame()
        assert frame.index.name == "step"
        assert frame["val/accuracy"].dropna().tolist() == load_run(run).curve("val/accuracy")[1].tolist()

    def test_without_pandas_it_says_what_to_install(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(MissingExtraError, match=r"flambeau\[pandas\]"):
            load_run(run).frame()

    def test_its_state_and_its_checkpoints_are_listed(self, run: Path) -> None:
        loaded = load_run(run)
        assert (loaded.state, loaded.finished) == ("finished", True)
        checkpoints = loaded.checkpoints()
        assert [checkpoint.step for checkpoint in checkpoints] == [12, 24, 36, 48]
        scores = dict(zip(*[array.tolist() for array in loaded.curve(loaded.status.best["metric"])], strict=True))  # type: ignore[index]
        assert {checkpoint.step: checkpoint.score for checkpoint in checkpoints} == scores

    def test_all_runs_of_a_folder_are_had_at_once(self, run: Path, flambeau: InProcess) -> None:
        """Also one that did not come to its end."""
        with pytest.raises(ArithmeticError):
            make_trainer(run_dir=run.parent / "other", callbacks=[Broken()]).fit()
        runs = load_runs(run.parent)
        assert {(loaded.path.name, loaded.finished) for loaded in runs} == {("run", True), ("other", False)}
        assert load_runs(run / "nowhere") == []

    def test_a_model_comes_in_evaluation_mode_with_the_weights_of_a_checkpoint(self, run: Path) -> None:
        store = run / "checkpoints"
        for which, path in (("best", store / "best"), ("last", store / "last"), (12, store / "step-00000012")):
            model = load_model(run, checkpoint=which)
            assert not any(module.training for module in model.modules())
            assert_same(dict(model.state_dict()), dict(Checkpoint.open(path.resolve()).load("model")["model"]))

    def test_its_best_score_can_be_measured_again(self, run: Path) -> None:
        trainer = load_run(run).trainer()
        best = load_run(run).status.best
        assert best is not None
        assert trainer.evaluate()[best["metric"].removeprefix("val/")] == best["value"]

    def test_looking_changes_nothing(self, run: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
        load_model(run)
        load_run(run).trainer().evaluate()
        assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before

    def test_weights_can_be_read_by_any_program(self, run: Path) -> None:
        from safetensors.torch import load_file

        path = (run / "checkpoints/last").resolve()
        assert_same(load_file(path / "model.safetensors"), dict(final_state(run)["model"]))

    def test_what_is_not_there_is_told(self, run: Path) -> None:
        with pytest.raises(RunFolderError, match="does not exist"):
            load_run(run / "nowhere")
        with pytest.raises(UsageError, match="use best, last or a step"):
            load_model(run, checkpoint="bets")
        with pytest.raises(CheckpointError, match="no checkpoint of step 7"):
            load_model(run, checkpoint=7)
        shutil.rmtree(run / "checkpoints")
        with pytest.raises(CheckpointError, match="no whole checkpoint"):
            load_model(run)

    def test_a_damaged_best_checkpoint_is_told_of(self, run: Path) -> None:
        weights_file = (run / "checkpoints/best").resolve() / "model.safetensors"
        weights_file.write_bytes(b"")
        with pytest.warns(UserWarning, match="is damaged"):
            load_model(run)

    def test_a_loaded_model_gives_the_same_outputs_each_time(self, run: Path) -> None:
        """Dropout is off."""
        model, inputs = load_model(run), torch.ones(4, 6)
        with torch.no_grad():
            assert np.array_equal(model(inputs), model(inputs))

    def test_a_tensor_dataset_can_be_evaluated_with_a_loaded_trainer(self, run: Path) -> None:
        data = TensorDataset(torch.randn(10, 6), torch.arange(10) % 3)
        assert set(load_run(run).trainer().evaluate(data)) == {"loss", "accuracy"}
