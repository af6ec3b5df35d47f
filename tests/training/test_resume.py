"""`flambeau resume`: to the same bits, and nothing that makes the run another one goes unsaid."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from support.projects import InProcess
from support.states import assert_same, assert_same_runs, final_state

from flambeau.run_folder import RunFolder, read_metrics

EVERYTHING = ("data.jitter=0.1", "trainer.ema={decay: 0.9}")
STEPS_PER_EPOCH = 12
TOTAL = 48


def preempted(flambeau: InProcess, monkeypatch: pytest.MonkeyPatch, step: int, *arguments: str) -> Path:
    """A run that was left after a step."""
    monkeypatch.setenv("PREEMPT_AT", str(step))
    flambeau("train", "tiny", "--run-dir", "run", *arguments, expect=75)
    monkeypatch.delenv("PREEMPT_AT")
    return flambeau.project.root / "run"


def straight(flambeau: InProcess, *arguments: str) -> Path:
    flambeau("train", "tiny", "--run-dir", "straight", *arguments)
    return flambeau.project.root / "straight"


def status(run: Path) -> dict[str, object]:
    record: dict[str, object] = json.loads((run / "status.json").read_text())
    return record


def content(run: Path) -> dict[str, bytes]:
    """All files of a run folder but the lock."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


class TestEquality:
    @pytest.mark.parametrize("step", [1, 11, 12, 13, 30, TOTAL])
    def test_a_run_left_after_any_step_ends_with_the_same_bits(
        self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch, step: int
    ) -> None:
        """First, mid-epoch, on either side of an epoch's end, and after the last one."""
        whole = straight(flambeau, *EVERYTHING)
        run = preempted(flambeau, monkeypatch, step, *EVERYTHING)
        assert status(run)["state"] == "preempted"
        assert status(run)["step"] == step
        flambeau("resume", "run")
        assert status(run)["state"] == "finished"
        assert_same_runs(whole, run)

    def test_a_run_left_many_times_ends_with_the_same_bits(
        self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = straight(flambeau, *EVERYTHING)
        run = preempted(flambeau, monkeypatch, 5, *EVERYTHING)
        for step in (6, 17, 18, 40):
            monkeypatch.setenv("PREEMPT_AT", str(step))
            flambeau("resume", "run", expect=75)
        monkeypatch.delenv("PREEMPT_AT")
        flambeau("resume", "run")
        assert_same_runs(whole, run)

    def test_a_run_that_failed_goes_on_from_its_newest_checkpoint(
        self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Records written after that checkpoint are written again, not twice."""
        whole = straight(flambeau, *EVERYTHING)
        run = flambeau.project.root / "run"
        monkeypatch.setenv("FAIL_AT", "33")
        with pytest.raises(RuntimeError, match="the test's own failure"):
            flambeau("train", "tiny", "--run-dir", "run", *EVERYTHING)
        assert status(run)["state"] == "failed"
        assert "the test's own failure" in str(status(run)["error"])
        monkeypatch.delenv("FAIL_AT")
        flambeau("resume", "run")
        assert status(run)["error"] is None
        assert_same_runs(whole, run)

    def test_without_a_checkpoint_the_run_begins_anew_in_its_folder(
        self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = straight(flambeau, *EVERYTHING)
        monkeypatch.setenv("FAIL_AT", "7")
        with pytest.raises(RuntimeError):
            flambeau("train", "tiny", "--run-dir", "run", *EVERYTHING)
        run = flambeau.project.root / "run"
        assert not (run / "checkpoints").exists()
        monkeypatch.delenv("FAIL_AT")
        flambeau("resume", "run")
        assert_same_runs(whole, run)

    def test_a_damaged_newest_checkpoint_is_told_of_and_the_one_before_is_used(
        self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = straight(flambeau, *EVERYTHING)
        run = preempted(flambeau, monkeypatch, 30, *EVERYTHING)
        weights = run / "checkpoints" / "step-00000030" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-7])
        answer = flambeau("resume", "run")
        assert "step-00000030 is damaged" in answer.err
        assert "step-00000030 is damaged" in (run / "log.txt").read_text()
        assert_same_runs(whole, run)

    def test_if_no_checkpoint_is_whole_the_run_begins_anew_and_says_why(
        self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = straight(flambeau, *EVERYTHING)
        run = preempted(flambeau, monkeypatch, 30, *EVERYTHING)
        for weights in run.glob("checkpoints/step-*/model.safetensors"):
            weights.write_bytes(b"")
        answer = flambeau("resume", "run")
        assert answer.err.count("is damaged") >= 2
        assert_same_runs(whole, run)

    def test_a_torn_record_is_told_of(self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
        """The checkpoint is whole, and metrics.jsonl was cut by something else."""
        run = preempted(flambeau, monkeypatch, 30)
        (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes()[:-3])
        with pytest.warns(UserWarning, match="records are missing"):
            flambeau("resume", "run")
        assert read_metrics(run / "metrics.jsonl")[-1]["step"] == TOTAL

    def test_the_run_keeps_its_folder_its_start_and_its_command(
        self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = preempted(flambeau, monkeypatch, 20)
        before = status(run)
        flambeau("resume", "run")
        after = status(run)
        assert after["started"] == before["started"]
        assert after["config"] == before["config"] == "tiny"
        assert (run / "command.txt").read_text().count("\n# ") == 1  # two dated entries
        assert not (run / "config-1.yaml").exists()


class TestChangedConfiguration:
    def test_a_change_that_breaks_equality_is_shown_and_refused(
        self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = preempted(flambeau, monkeypatch, 20)
        before = content(run)
        answer = flambeau("resume", "run", "optimizer.lr=0.5", "model.dropout=0.0", expect=2)
        assert "changed: optimizer.lr: 0.01 -> 0.5" in answer.out
        assert "changed: model.dropout: (not set) -> 0.0" in answer.out
        assert "optimizer.lr" in answer.err
        assert "--force" in answer.err
        assert content(run) == before

    def test_force_goes_on_with_the_new_value_and_keeps_the_old_configuration(
        self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = preempted(flambeau, monkeypatch, 20, "scheduler={name: constant}")
        flambeau("resume", "run", "optimizer.lr=0.5", "--force")
        rates = {record["step"]: record["lr"] for record in read_metrics(run / "metrics.jsonl") if "lr" in record}
        assert rates[20] == 0.01
        assert rates[25] == 0.5
        assert yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["lr"] == 0.5
        assert yaml.safe_load((run / "config-1.yaml").read_text())["optimizer"]["lr"] == 0.01

    @pytest.mark.parametrize(
        "change", ["optimizer.weight_decay=0.3", "optimizer.betas=[0.5, 0.6]", "optimizer.eps=1e-3"]
    )
    def test_forced_hyperparameters_are_those_of_the_configuration_not_of_the_checkpoint(
        self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch, change: str
    ) -> None:
        run = preempted(flambeau, monkeypatch, 20)
        flambeau("resume", "run", change, "--force")
        key, value = change.removeprefix("optimizer.").split("=")
        group = final_state(run)["optimizer"]["param_groups"][0]
        assert group[key] == pytest.approx(yaml.safe_load(value) if "[" in value else float(value))

    @pytest.mark.parametrize(
        "change",
        [
            "data.workers=1",
            "trainer.progress=false",
            "checkpoint.every_steps=7",
            "data.prefetch=3",
            "trainer.test_at_end=true",
        ],
    )
    def test_a_change_that_changes_no_number_needs_no_force(
        self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch, change: str
    ) -> None:
        arguments = ("data.workers=1",) if "prefetch" in change else ()
        whole = straight(flambeau, *EVERYTHING)
        run = preempted(flambeau, monkeypatch, 30, *EVERYTHING, *arguments)
        answer = flambeau("resume", "run", change)
        assert f"changed: {change.split('=')[0]}" in answer.out
        assert_same(final_state(whole)["model"], final_state(run)["model"])

    def test_a_mistyped_override_is_refused_like_at_the_start(
        self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        preempted(flambeau, monkeypatch, 20)
        answer = flambeau("resume", "run", "trainer.epohcs=9", expect=2)
        assert "did you mean" in answer.err
        assert "epochs" in answer.err

    def test_another_model_is_refused_with_the_weights_that_do_not_fit(
        self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = preempted(flambeau, monkeypatch, 20)
        answer = flambeau("resume", "run", "model.num_classes=5", "--force", expect=1)
        assert "do not fit the model" in answer.err
        assert "head.weight" in answer.err
        assert status(run)["state"] == "failed"

    def test_training_data_of_another_length_is_refused(
        self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The configuration is the same, and the files behind it are not: other batches would follow in silence."""
        preempted(flambeau, monkeypatch, 20)
        parts = next(flambeau.project.root.glob("parts_*.py"))
        module = __import__(parts.stem)
        original = module.Points.__init__
        monkeypatch.setattr(
            module.Points, "__init__", lambda self, size=90, jitter=0.0, seed=0: original(self, size, jitter, seed)
        )
        answer = flambeau("resume", "run", expect=None)  # 90 samples: as many steps an epoch as 92
        assert answer.status in (1, 2)
        assert "92" in answer.err
        assert "90" in answer.err


class TestLength:
    CONSTANT = ("scheduler={name: constant}", "trainer.log_every=6")

    def test_a_finished_run_is_refused_with_the_way_to_train_longer(self, flambeau: InProcess) -> None:
        run = straight(flambeau)
        before = content(run)
        answer = flambeau("resume", "straight", expect=2)
        assert "is finished" in answer.err
        assert "trainer.epochs=" in answer.err
        assert content(run) == before

    def test_a_longer_run_with_a_constant_schedule_equals_the_one_that_was_long_from_the_start(
        self, flambeau: InProcess
    ) -> None:
        whole = straight(flambeau, *EVERYTHING, *self.CONSTANT)
        flambeau("train", "tiny", "--run-dir", "run", *EVERYTHING, *self.CONSTANT, "trainer.epochs=2")
        answer = flambeau("resume", "run", "trainer.epochs=4")
        assert "24 -> 48 steps" in answer.out
        assert_same_runs(whole, flambeau.project.root / "run")

    def test_a_longer_run_with_a_planned_schedule_is_refused_and_says_what_would_happen(
        self, flambeau: InProcess
    ) -> None:
        flambeau("train", "tiny", "--run-dir", "run", "trainer.epochs=2")
        before = content(flambeau.project.root / "run")
        answer = flambeau("resume", "run", "trainer.epochs=4", expect=2)
        assert "Cosine schedule was planned over 24 steps" in answer.err
        assert "over 48" in answer.err
        assert "--force" in answer.err
        assert content(flambeau.project.root / "run") == before

    def test_force_plans_the_schedule_anew_over_the_whole_length(self, flambeau: InProcess) -> None:
        """From the old end on, the rates are those of a run that was long from the start."""
        whole = straight(flambeau)
        flambeau("train", "tiny", "--run-dir", "run", "trainer.epochs=2")
        answer = flambeau("resume", "run", "trainer.epochs=4", "--force")
        assert "planned anew" in answer.err

        def rates(name: str) -> dict[int, float]:
            records = read_metrics(flambeau.project.root / name / "metrics.jsonl")
            return {record["step"]: record["lr"] for record in records if "lr" in record and record["step"] > 24}

        assert rates("run") == rates(whole.name)
        assert max(rates("run")) == TOTAL

    def test_a_run_cannot_be_made_shorter_than_it_is(
        self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        preempted(flambeau, monkeypatch, 30)
        answer = flambeau("resume", "run", "trainer.epochs=1", expect=2)
        assert "the run is at step 30 already" in answer.err

    def test_epochs_can_be_exchanged_for_steps(self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is the length in steps that counts; equal length is no change at all."""
        whole = straight(flambeau)
        run = preempted(flambeau, monkeypatch, 30)
        flambeau("resume", "run", "trainer.epochs=null", f"trainer.steps={TOTAL}")
        assert_same_runs(whole, run)


class TestFolders:
    def test_a_folder_in_use_is_refused_naming_the_process(
        self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = preempted(flambeau, monkeypatch, 20)
        with RunFolder.open(run).lock():
            answer = flambeau("resume", "run", expect=2)
        assert "in use by process" in answer.err
        assert status(run)["state"] == "preempted"

    def test_a_used_folder_is_refused_by_train_with_the_way_to_go_on(self, flambeau: InProcess) -> None:
        run = straight(flambeau)
        before = content(run)
        answer = flambeau("train", "tiny", "--run-dir", "straight", expect=2)
        assert "holds a run already (finished)" in answer.err
        assert "flambeau resume straight" in answer.err
        assert content(run) == before

    def test_what_is_no_run_folder_is_refused(self, flambeau: InProcess) -> None:
        assert "does not exist" in flambeau("resume", "nowhere", expect=2).err
        assert "is not a run folder" in flambeau("resume", "configs", expect=2).err

    def test_a_folder_without_a_configuration_is_refused(self, flambeau: InProcess) -> None:
        """Killed between the folder's making and its first file."""
        RunFolder.create(flambeau.project.root, "tiny", path=flambeau.project.root / "run")
        answer = flambeau("resume", "run", expect=2)
        assert "holds no configuration" in answer.err
        assert "flambeau train" in answer.err

    def test_a_run_that_was_moved_goes_on(self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = straight(flambeau)
        run = preempted(flambeau, monkeypatch, 30)
        moved = shutil.move(run, flambeau.project.root / "elsewhere")
        flambeau("resume", "elsewhere")
        assert_same_runs(whole, moved)

    def test_a_run_goes_on_from_any_working_directory(
        self, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """The run's own parts lie in the project that it was started in."""
        whole = straight(flambeau)
        run = preempted(flambeau, monkeypatch, 30)
        (tmp_path / "home").mkdir()
        monkeypatch.chdir(tmp_path / "home")
        flambeau("resume", run)
        assert_same_runs(whole, run)
