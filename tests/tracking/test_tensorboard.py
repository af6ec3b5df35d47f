"""Event files, judged by TensorBoard's own reader."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flambeau.errors import MissingExtraError
from flambeau.registry import load_part
from flambeau.tracking.event_file import EventFileWriter, masked_crc32c

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flambeau.tracking.tensorboard import TensorBoardTracker


def read(run_dir: Path) -> Any:
    """What TensorBoard shows of a run."""
    accumulator = EventAccumulator(os.fspath(run_dir / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def scalars(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(run_dir).Scalars(tag)]


def test_scalars_are_shown_at_their_steps(tmp_path: Path) -> None:
    """Also such as are not finite."""
    with TensorBoardTracker(run_dir=tmp_path) as tracker:
        tracker.log_scalars({"train/loss": 0.5, "lr": 1e-3}, 10)
        tracker.log_scalars({"train/loss": 0.25, "val/accuracy": math.nan}, 20)
    assert read(tmp_path).Tags()["scalars"] == ["train/loss", "lr", "val/accuracy"]
    assert scalars(tmp_path, "train/loss") == [(10, 0.5), (20, 0.25)]
    ((step, value),) = scalars(tmp_path, "val/accuracy")
    assert step == 20 and math.isnan(value)


def test_all_scalars_of_a_step_are_one_record(tmp_path: Path) -> None:
    """Their number hardly matters to the cost."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    with TensorBoardTracker(run_dir=tmp_path) as tracker:
        tracker.log_scalars({f"metric{i}": float(i) for i in range(50)}, 1)
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert len(list(EventFileLoader(os.fspath(file)).Load())) == 3  # the file's version, the start, and the step


def test_what_a_killed_process_logged_is_there(tmp_path: Path) -> None:
    """Nothing waits in a buffer."""
    code = (
        "import os, sys; from pathlib import Path\n"
        "from flambeau.tracking.tensorboard import TensorBoardTracker\n"
        "tracker = TensorBoardTracker(run_dir=Path(sys.argv[1]))\n"
        "for step in range(5): tracker.log_scalars({'loss': float(step)}, step)\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, os.fspath(tmp_path)], check=False).returncode == -9
    assert scalars(tmp_path, "loss") == [(step, float(step)) for step in range(5)]


@pytest.mark.parametrize("torn", [0, 1, 30])
def test_a_resumed_run_shows_every_step_once(tmp_path: Path, torn: int, caplog: pytest.LogCaptureFixture) -> None:
    """What lies beyond the checkpoint is dropped, also behind a half-written record, over several resumes."""
    for resume_step, steps, mark in ((None, range(8), 0), (5, range(5, 9), 1), (7, range(7, 12), 2)):
        tracker = TensorBoardTracker(run_dir=tmp_path, resume_step=resume_step)
        for step in steps:
            tracker.log_scalars({"loss": step + mark / 4, f"only{mark}": 1.0}, step)
        tracker.log_text("note", "hello", steps[-1])
        if torn:
            with tracker._file.path.open("ab") as file:
                file.write(tracker._file.path.read_bytes()[:torn])
    marks = [0.0] * 5 + [0.25] * 2 + [0.5] * 5
    assert scalars(tmp_path, "loss") == [(step, step + mark) for step, mark in enumerate(marks)]
    assert scalars(tmp_path, "only0") == [(step, 1.0) for step in range(5)]
    assert [event.step for event in read(tmp_path).Tensors("note")] == [11]
    assert "Purging" not in caplog.text  # nothing is left for readers to sort out


def test_a_tensorboard_that_is_open_on_the_run_drops_the_same(tmp_path: Path) -> None:
    """What it read before the kill is purged when it comes to the new file."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as Served

    first = TensorBoardTracker(run_dir=tmp_path)
    for step in range(8):
        first.log_scalars({"loss": 0.0, "only": 0.0}, step)
    served = Served(os.fspath(tmp_path / "tensorboard"))
    served.Reload()
    second = TensorBoardTracker(run_dir=tmp_path, resume_step=5)
    second.log_scalars({"loss": 1.0}, 6)
    served.Reload()
    assert [event.step for event in served.Tensors("loss")] == [0, 1, 2, 3, 4, 6]
    assert [event.step for event in served.Tensors("only")] == [0, 1, 2, 3, 4]


def test_files_that_need_no_cut_are_not_touched(tmp_path: Path) -> None:
    """A resume from the last logged step rewrites nothing but what a kill left half-written."""
    with TensorBoardTracker(run_dir=tmp_path) as tracker:
        tracker.log_scalars({"loss": 0.0}, 4)
    before = tracker._file.path.stat()
    TensorBoardTracker(run_dir=tmp_path, resume_step=5).close()
    assert tracker._file.path.stat().st_ino == before.st_ino
    with tracker._file.path.open("ab") as file:
        file.write(b"half a record")
    TensorBoardTracker(run_dir=tmp_path, resume_step=5).close()
    assert tracker._file.path.stat().st_size == before.st_size
    TensorBoardTracker(run_dir=tmp_path, resume_step=4).close()
    assert read(tmp_path).Tags()["scalars"] == []


def test_files_of_one_second_are_read_in_the_order_of_their_making(tmp_path: Path) -> None:
    """Names order by time to the microsecond: a run resumed within a second is not purged by its past."""
    names = []
    for _ in range(20):
        writer = EventFileWriter(tmp_path)
        writer.close()
        names.append(writer.path.name)
    assert names == sorted(names) and len(set(names)) == 20


def test_texts_are_shown_by_the_text_dashboard(tmp_path: Path) -> None:
    """In any script."""
    with TensorBoardTracker(run_dir=tmp_path) as tracker:
        tracker.log_text("note", "**größer** 火", 3)
    (event,) = read(tmp_path).Tensors("note")
    assert (event.step, event.tensor_proto.string_val[0].decode()) == (3, "**größer** 火")
    assert read(tmp_path).summary_metadata["note"].plugin_data.plugin_name == "text"


def test_the_configuration_is_shown_as_code_without_its_secrets(tmp_path: Path) -> None:
    """Indented YAML that can be copied into a file."""
    import yaml

    with TensorBoardTracker(run_dir=tmp_path) as tracker:
        tracker.log_config({"optimizer": {"lr": 1e-3, "name": "adamw"}, "w": {"api_key": "hunter2"}})
    (event,) = read(tmp_path).Tensors("config")
    lines = event.tensor_proto.string_val[0].decode().splitlines()
    assert all(line.startswith("    ") for line in lines)
    text = "\n".join(line[4:] for line in lines)
    assert yaml.safe_load(text) == {"optimizer": {"lr": 1e-3, "name": "adamw"}, "w": {"api_key": "***"}}


def test_images_are_shown_with_their_size(tmp_path: Path) -> None:
    """Several become one picture."""
    import torch

    with TensorBoardTracker(run_dir=tmp_path) as tracker:
        tracker.log_image("samples", torch.rand(5, 3, 4, 6, dtype=torch.bfloat16, requires_grad=True), 2)
    (event,) = read(tmp_path).Images("samples")
    assert (event.step, event.width, event.height) == (2, 3 * 6 + 4, 2 * 4 + 2)
    assert event.encoded_image_string.startswith(b"\x89PNG")


def test_a_full_disk_leaves_whole_records(tmp_path: Path) -> None:
    """The error is passed on with its number; what was and will be written stays readable."""
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from flambeau.tracking.tensorboard import TensorBoardTracker\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "tracker = TensorBoardTracker(run_dir=Path(sys.argv[1]))\n"
        "tracker.log_scalars({'loss': 1.0}, 1)\n"
        "size = tracker._file.path.stat().st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200, 1 << 20))\n"
        "try: tracker.log_text('note', 'x' * 1000, 2)\n"
        "except OSError as error: print(error.errno, tracker._file.path.stat().st_size == size)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "tracker.log_scalars({'loss': 3.0}, 3)\n"
    )
    output = subprocess.check_output([sys.executable, "-c", code, os.fspath(tmp_path)], text=True)
    assert output == "27 True\n"  # EFBIG, what a file size limit gives in place of ENOSPC
    assert scalars(tmp_path, "loss") == [(1, 1.0), (3, 3.0)]


def test_checksums_are_those_of_the_tensorboard_package() -> None:
    """For any bytes."""
    from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

    for data in (b"", b"\0", b"123456789", os.urandom(1000)):
        assert masked_crc32c(data) == pywrap_tensorflow.masked_crc32c(data)


def test_without_the_package_the_message_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found out before anything is made."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Hide("tensorboard"), *sys.meta_path])
    with pytest.raises(MissingExtraError, match=r"flambeau\[tensorboard\]"):
        TensorBoardTracker(run_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


class _Hide:
    """Makes a package look as if it were not installed."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_it_is_registered_under_its_name() -> None:
    """`tracking: [tensorboard]`."""
    assert load_part("tracker", "tensorboard") is TensorBoardTracker


def test_logging_brings_in_neither_tensorflow_nor_the_web_server(tmp_path: Path) -> None:
    """Only the messages of the package are imported."""
    code = (
        "import sys; from pathlib import Path\n"
        "from flambeau.tracking.tensorboard import TensorBoardTracker\n"
        "TensorBoardTracker(run_dir=Path(sys.argv[1])).log_scalars({'a': 1.0}, 1)\n"
        "print({'tensorflow', 'torch', 'werkzeug', 'tensorboard.summary', 'threading'} & set(sys.modules))"
    )
    output = subprocess.check_output([sys.executable, "-c", code, os.fspath(tmp_path)], text=True)
    assert output in ("set()\n", "{'threading'}\n")


def test_histograms_are_shown_with_all_their_numbers(tmp_path: Path) -> None:
    """What is not finite is left out; nothing at all is no histogram."""
    import torch

    with TensorBoardTracker(run_dir=tmp_path) as tracker:
        tracker.log_histogram("weights", torch.tensor([1.0, 2.0, 2.0, math.nan, math.inf], dtype=torch.bfloat16), 3)
        tracker.log_histogram("none", torch.tensor([math.nan]), 3)
        tracker.log_histogram("empty", [], 3)
    found = read(tmp_path)
    assert found.Tags()["histograms"] == ["weights"]
    (event,) = found.Histograms("weights")
    value = event.histogram_value
    assert (event.step, value.min, value.max, value.num, value.sum, value.sum_squares) == (3, 1.0, 2.0, 3, 5.0, 9.0)
    assert sum(value.bucket) == 3 and value.bucket_limit[-1] == 2.0


def test_tables_and_figures_are_shown_as_texts_and_images(tmp_path: Path) -> None:
    """TensorBoard has neither of its own."""
    figure = pytest.importorskip("matplotlib.figure", reason="figures are matplotlib's").Figure(figsize=(2, 1), dpi=30)
    with TensorBoardTracker(run_dir=tmp_path) as tracker:
        tracker.log_table("table", ["a", "b"], [[1, 2.5]], 4)
        tracker.log_figure("figure", figure, 4)
    found = read(tmp_path)
    (text,) = found.Tensors("table")
    assert text.tensor_proto.string_val[0] == b"| a | b |\n| --- | --- |\n| 1 | 2.5 |\n"
    (image,) = found.Images("figure")
    assert (image.step, image.width, image.height) == (4, 60, 30)
