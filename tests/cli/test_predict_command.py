"""`flambeau predict`: every format in, every format out, and what is said of those that are none."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from support.projects import InProcess

from flambeau import load_model

INPUTS = np.random.default_rng(0).normal(size=(37, 6)).astype(np.float32)


@pytest.fixture
def run(flambeau: InProcess, tmp_path: Path) -> Path:
    flambeau("train", "tiny", "--run-dir", "run")
    root = flambeau.project.root
    np.save(root / "inputs.npy", INPUTS)
    np.savez(root / "inputs.npz", inputs=INPUTS)
    save_file({"inputs": INPUTS}, root / "inputs.safetensors")
    return root / "run"


@pytest.fixture
def expected(run: Path) -> np.ndarray:
    """What the best checkpoint's model gives."""
    with torch.no_grad():
        return np.asarray(load_model(run)(torch.from_numpy(INPUTS)))


class TestFormats:
    @pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
    def test_every_input_format_gives_the_model_s_outputs(
        self, flambeau: InProcess, expected: np.ndarray, suffix: str
    ) -> None:
        answer = flambeau("predict", "run", "--input", f"inputs.{suffix}", "--output", "out.npz")
        assert "37 samples -> out.npz" in answer.out
        np.testing.assert_allclose(np.load("out.npz")["outputs"], expected, rtol=1e-5, atol=1e-6)

    def test_csv_is_a_header_and_a_line_a_sample(self, flambeau: InProcess, expected: np.ndarray) -> None:
        flambeau("predict", "run", "--input", "inputs.npy", "--output", "out.csv")
        header, *rows = csv.reader(Path("out.csv").read_text().splitlines())
        assert header == ["outputs[0]", "outputs[1]", "outputs[2]"]
        np.testing.assert_allclose(np.array(rows, dtype=float), expected, rtol=1e-5, atol=1e-6)

    def test_jsonl_is_an_object_a_sample(self, flambeau: InProcess, expected: np.ndarray) -> None:
        flambeau("predict", "run", "--input", "inputs.npy", "--output", "out.jsonl")
        rows = [json.loads(line)["outputs"] for line in Path("out.jsonl").read_text().splitlines()]
        np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(("split", "count"), [("train", 92), ("val", 31), ("test", 29)])
    def test_a_split_is_an_input_too(self, flambeau: InProcess, run: Path, split: str, count: int) -> None:
        flambeau("predict", "run", "--input", split, "--output", "out.npz")
        assert np.load("out.npz")["outputs"].shape == (count, 3)

    def test_a_checkpoint_can_be_chosen(self, flambeau: InProcess, run: Path) -> None:
        flambeau("predict", "run", "--input", "inputs.npy", "--output", "out.npz", "--checkpoint", "last")
        with torch.no_grad():
            expected = load_model(run, checkpoint="last")(torch.from_numpy(INPUTS))
        np.testing.assert_allclose(np.load("out.npz")["outputs"], expected, rtol=1e-5, atol=1e-6)

    def test_float64_inputs_are_taken(self, flambeau: InProcess, expected: np.ndarray) -> None:
        """numpy's default type."""
        np.save("wide.npy", INPUTS.astype(np.float64))
        flambeau("predict", "run", "--input", "wide.npy", "--output", "out.npz")
        np.testing.assert_allclose(np.load("out.npz")["outputs"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("run")
class TestErrors:
    def refused(self, flambeau: InProcess, given: str, output: str = "out.npz") -> str:
        answer = flambeau("predict", "run", "--input", given, "--output", output, expect=2)
        assert "Traceback" not in answer.err
        assert not Path(output).is_file()
        return answer.err

    def test_unknown_formats_are_refused_with_the_known_ones(self, flambeau: InProcess) -> None:
        Path("inputs.txt").write_text("1 2 3")
        assert "use .npy, .npz or .safetensors" in self.refused(flambeau, "inputs.txt")
        assert "use .npz, .csv or .jsonl" in self.refused(flambeau, "inputs.npy", "out.parquet")

    def test_what_is_not_there_is_told(self, flambeau: InProcess) -> None:
        assert "nowhere.npy does not exist" in self.refused(flambeau, "nowhere.npy")
        assert "the folder nowhere does not exist" in self.refused(flambeau, "inputs.npy", "nowhere/out.npz")

    def test_a_file_without_inputs_is_told_with_what_it_has(self, flambeau: InProcess) -> None:
        np.savez("other.npz", images=INPUTS)
        assert "inputs" in self.refused(flambeau, "other.npz")
        save_file({"images": INPUTS}, "other.safetensors")
        assert "inputs" in self.refused(flambeau, "other.safetensors")

    @pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
    def test_a_damaged_file_is_told(self, flambeau: InProcess, suffix: str) -> None:
        path = Path(f"inputs.{suffix}")
        path.write_bytes(path.read_bytes()[:60])
        message = self.refused(flambeau, str(path))
        assert "cannot be read" in message or "is not a whole" in message
        assert path.name in message

    @pytest.mark.parametrize("suffix", ["npy", "npz"])
    def test_a_file_with_python_objects_is_refused_and_nothing_in_it_runs(
        self, flambeau: InProcess, suffix: str
    ) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return Path.touch, (Path("exploded"),)  # type: ignore[return-value]

        assert pickle.dumps(Bomb())
        objects = np.array([Bomb()], dtype=object)
        path = f"bomb.{suffix}"
        if suffix == "npy":
            np.save(path, objects, allow_pickle=True)
        else:
            np.savez(path, inputs=objects)
        assert "cannot be read" in self.refused(flambeau, path)
        assert not Path("exploded").exists()


class TestModels:
    """Of other outputs than one tensor of scores."""

    def train(self, flambeau: InProcess, forward: str) -> None:
        parts = next(flambeau.project.root.glob("parts_*.py"))
        parts.write_text(
            parts.read_text()
            + f"""
@register.model("other")
class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, inputs):
        outputs = self.layer(inputs)
        return {forward}


@register.criterion("mean")
class Mean(nn.Module):
    def forward(self, outputs, targets):
        while not isinstance(outputs, torch.Tensor):
            outputs = next(iter(outputs.values())) if isinstance(outputs, dict) else outputs[0]
        return outputs.square().mean()
"""
        )
        flambeau(
            "train",
            "tiny",
            "--run-dir",
            "run",
            "model={name: other}",
            "criterion={name: mean}",
            "metrics=null",
            "trainer.epochs=1",
        )

    @pytest.mark.parametrize("suffix", ["npz", "csv", "jsonl"])
    def test_a_dict_gives_an_entry_or_columns_a_key(self, flambeau: InProcess, suffix: str) -> None:
        self.train(flambeau, "{'boxes': outputs.reshape(-1, 2, 2), 'score': outputs[:, 0]}")
        flambeau("predict", "run", "--input", "val", "--output", f"out.{suffix}")
        if suffix == "npz":
            arrays = np.load("out.npz")
            assert {name: arrays[name].shape for name in arrays} == {"boxes": (31, 2, 2), "score": (31,)}
        elif suffix == "csv":
            header, *rows = csv.reader(Path("out.csv").read_text().splitlines())
            assert header == ["boxes[0]", "boxes[1]", "boxes[2]", "boxes[3]", "score[0]"]
            assert len(rows) == 31
        else:
            row = json.loads(Path("out.jsonl").read_text().splitlines()[0])
            assert np.shape(row["boxes"]) == (2, 2)
            assert isinstance(row["score"], float)

    def test_outputs_that_are_no_tensors_are_told(self, flambeau: InProcess) -> None:
        self.train(flambeau, "(outputs, outputs)")
        answer = flambeau("predict", "run", "--input", "val", "--output", "out.npz", expect=2)
        assert "no tensors" in answer.err
