"""What user code shows: numbers in the record, everything else at every tracker, and only where somebody looks."""

from __future__ import annotations

import dataclasses
import gc
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support.projects import InProcess, Project, environment
from support.tasks import linear, make_trainer, weights

from flambeau import Batch, Callback, Tracker, Trainer
from flambeau.runtime.world import World


class Diary(Tracker):
    """Writes down what it is given."""

    def __init__(self) -> None:
        self.entries: list[tuple[Any, ...]] = []
        self.closed = 0

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        self.entries.append(("scalars", dict(values), step))

    def log_text(self, tag: str, text: str, step: int) -> None:
        self.entries.append(("text", tag, text, step))

    def log_image(self, tag: str, image: Any, step: int) -> None:
        self.entries.append(("image", tag, image.shape, step))

    def log_artifact(self, path: Path, name: str) -> None:
        self.entries.append(("artifact", path, name))

    def close(self) -> None:
        self.closed += 1

    def of(self, *kinds: str) -> list[tuple[Any, ...]]:
        return [entry for entry in self.entries if entry[0] in kinds]


class Least:
    """Not a subclass, and no more than a tracker must have."""

    def log_scalars(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class Shows(Trainer):
    """Logs from within its steps."""

    def training_step(self, batch: Batch) -> torch.Tensor:
        outputs = self.forward(batch.inputs)
        self.log_scalar("train/step", self.current_step)
        self.log_scalar("train/norm", outputs.norm(), batch.size)
        self.log_text("note", f"step {self.current_step}")
        return self.compute_loss(outputs, batch)


def test_numbers_are_in_the_record_as_means_since_the_last_one(tmp_path: Path) -> None:
    """And so at every tracker. A dry batch leaves none."""
    diary = Diary()
    make_trainer(kind=Shows, epochs=2, log_every=3, trackers=[diary], run_dir=tmp_path / "run").fit()
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [record["train/step"] for record in records] == [2.0, 5.0]  # of 1, 2, 3 and of 4, 5, 6
    assert all(record["train/norm"] > 0 for record in records)
    shown = [values for _, values, _ in diary.of("scalars") if "train/step" in values]
    assert [values["train/step"] for values in shown] == [2.0, 5.0]


def test_what_a_step_shows_stands_at_that_step_once() -> None:
    """The dry batch, which is undone, shows nothing; so a resumed run shows each step once."""
    diary = Diary()
    make_trainer(kind=Shows, epochs=1, trackers=[diary]).fit()
    assert diary.of("text") == [("text", "note", f"step {step}", step) for step in (1, 2, 3)]


def test_a_run_that_shows_trains_to_the_same_bits() -> None:
    plain, shows = make_trainer(linear(), epochs=2), make_trainer(linear(), kind=Shows, epochs=2, trackers=[Diary()])
    plain.fit()
    shows.fit()
    assert torch.equal(weights(plain.model), weights(shows.model))


class TestCapabilities:
    """A tracker shows what it can."""

    def trainer(self, *trackers: Any) -> Trainer:
        trainer = make_trainer(trackers=trackers)
        trainer.fit()
        return trainer

    def test_a_table_is_a_text_where_there_are_no_tables(self) -> None:
        diary = Diary()
        trainer = self.trainer(diary)
        trainer.log_table("errors", ["class", "share"], [["a|b", 0.123456], [7, 1]])
        text = "| class | share |\n| --- | --- |\n| a\\|b | 0.1235 |\n| 7 | 1 |\n"
        assert diary.of("text") == [("text", "errors", text, 3)]

    def test_a_table_with_a_row_too_short_is_refused_with_its_number(self) -> None:
        with pytest.raises(ValueError, match="row 1 of the table has 1 cells, and there are 2 columns"):
            self.trainer(Diary()).log_table("errors", ["a", "b"], [[1, 2], [3]])

    def test_what_a_tracker_has_no_likeness_for_is_left_out(self) -> None:
        diary = Diary()
        trainer = self.trainer(diary, Least())
        count = len(diary.entries)
        trainer.log_histogram("weights", torch.zeros(3))
        assert len(diary.entries) == count

    def test_a_tracker_that_has_nothing_but_numbers_is_no_error(self) -> None:
        trainer = self.trainer(Least())
        trainer.log_image("image", torch.zeros(1, 2, 2))
        trainer.log_text("text", "text")
        trainer.log_artifact("file")

    def test_an_artifact_has_its_file_s_name_or_another(self) -> None:
        diary = Diary()
        trainer = self.trainer(diary)
        trainer.log_artifact("folder/file.txt")
        trainer.log_artifact("folder/file.txt", "other")
        path = Path("folder/file.txt")
        assert diary.of("artifact") == [("artifact", path, "file.txt"), ("artifact", path, "other")]


class TestFigures:
    @pytest.fixture
    def pyplot(self) -> Any:
        matplotlib = pytest.importorskip("matplotlib", reason="figures are matplotlib's")
        matplotlib.use("agg")
        from matplotlib import pyplot

        pyplot.close("all")
        yield pyplot
        pyplot.close("all")

    def test_a_figure_is_shown_as_an_image_and_closed(self, pyplot: Any) -> None:
        """At its own size: 3 by 2 inches at 50 dots."""
        diary = Diary()

        class Draw(Callback):
            def on_step_end(self, trainer: Trainer) -> None:
                figure, axes = pyplot.subplots(figsize=(3, 2), dpi=50)
                axes.plot([1, 2, 3])
                trainer.log_figure("curve", figure)

        make_trainer(trackers=[diary], callbacks=[Draw()]).fit()
        assert diary.of("image") == [("image", "curve", (4, 100, 150), step) for step in (1, 2, 3)]
        assert pyplot.get_fignums() == []

    @pytest.mark.parametrize("rank", [0, 1])
    def test_nothing_is_drawn_and_nothing_leaks_where_nobody_looks(self, pyplot: Any, rank: int) -> None:
        """Without a tracker, and in a process other than rank 0: a function is not called, a figure is closed."""
        trainer = make_trainer(trackers=[Diary()] if rank else [])
        trainer.fit()
        if rank:
            trainer.world = dataclasses.replace(World(), rank=1, size=2)
        trainer.log_figure("curve", lambda: pytest.fail("it was drawn"))
        trainer.log_figure("curve", pyplot.figure())
        assert pyplot.get_fignums() == []

    def test_a_figure_is_closed_if_a_tracker_fails_on_it(self, pyplot: Any) -> None:
        class Full(Diary):
            def log_image(self, tag: str, image: Any, step: int) -> None:
                raise OSError("the disk is full")

        trainer = make_trainer(trackers=[Full()])
        trainer.fit()
        with pytest.raises(OSError, match="full"):
            trainer.log_figure("curve", pyplot.figure)
        gc.collect()
        assert pyplot.get_fignums() == []

    def test_a_figure_made_without_pyplot_is_shown_too_and_keeps_its_canvas(self, pyplot: Any) -> None:
        from matplotlib.figure import Figure

        diary, figure = Diary(), Figure(figsize=(1, 1), dpi=40)
        trainer, canvas = make_trainer(trackers=[diary]), figure.canvas
        trainer.fit()
        trainer.log_figure("plain", figure)
        assert diary.of("image") == [("image", "plain", (4, 40, 40), 3)]
        assert figure.canvas is canvas


def test_matplotlib_is_not_imported_by_a_run_that_draws_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests'); from support.tasks import make_trainer\n"
        "trainer = make_trainer(); trainer.fit(); trainer.log_figure('x', lambda: 1/0)\n"
        "print('matplotlib' in sys.modules, 'PIL' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment(), capture_output=True, text=True)
    assert done.stdout.endswith("False False\n"), done.stdout + done.stderr


class TestTheWorkingDirectory:
    """A tracker leaves its files in the run folder and is closed, however the run ends."""

    @pytest.mark.parametrize("fail_at", ["", "2"])
    def test_trackers_are_closed_once(self, fail_at: str, monkeypatch: pytest.MonkeyPatch) -> None:
        class Fail(Callback):
            def on_step_end(self, trainer: Trainer) -> None:
                if str(trainer.state.step) == fail_at:
                    raise ArithmeticError("mine")

        diary = Diary()
        trainer = make_trainer(trackers=[diary], callbacks=[Fail()])
        if fail_at:
            with pytest.raises(ArithmeticError):
                trainer.fit()
        else:
            trainer.fit()
        assert diary.closed == 1

    def test_a_run_leaves_nothing_beside_its_folder(self, flambeau: InProcess) -> None:
        before = {path.name for path in flambeau.project.root.iterdir()}
        flambeau("train", "tiny", "tracking=[tensorboard]", "trainer.epochs=1", "--run-dir", "run")
        assert {path.name for path in flambeau.project.root.iterdir()} - before <= {"run", "__pycache__"}


@pytest.mark.slow
def test_numbers_of_several_processes_are_averaged_and_rank_0_alone_shows(tmp_path: Path) -> None:
    """Each process logs its rank; texts are those of rank 0."""
    parts = """
from flambeau import Tracker, Trainer

@register.tracker("file")
class File(Tracker):
    def log_scalars(self, values, step): ...

    def log_text(self, tag, text, step):
        with open("texts", "a") as file:
            file.write(f"{text}\\n")

@register.trainer("shows")
class Shows(Trainer):
    def training_step(self, batch):
        self.log_scalar("train/rank", self.world.rank)
        self.log_text("rank", f"step {self.current_step} of rank {self.world.rank}")
        return super().training_step(batch)
"""
    project = Project.write(tmp_path / "project", parts=parts)
    options = ["trainer.name=shows", "tracking=[file]", "trainer.steps=2", "trainer.epochs=null", "--run-dir", "run"]
    project.run("train", "tiny", *options, "-d", "cpu", "--processes", "2")
    (record,) = [
        found
        for line in (project.root / "run/metrics.jsonl").read_text().splitlines()
        if "train/rank" in (found := json.loads(line))
    ]
    assert record["train/rank"] == 0.5
    assert (project.root / "texts").read_text() == "step 1 of rank 0\nstep 2 of rank 0\n"
