"""The shipped data modules: what they offer, what they hold out, and that they are functions of the seed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from flambeau.data import EvalFeeder
from flambeau.data.arrays import ArrayFiles
from flambeau.data.digits import Digits
from flambeau.data.synthetic import Synthetic
from flambeau.errors import MissingExtraError, UsageError


def rows(dataset: Any) -> set[bytes]:
    return {dataset[index][0].numpy().tobytes() for index in range(len(dataset))}


def test_digits_are_scikit_learns() -> None:
    """All 1,797 images and labels, each in exactly one part."""
    from sklearn.datasets import load_digits

    data = Digits(seed=3)
    parts = [data.train, data.val, data.test]
    assert [len(part) for part in parts] == [1257, 270, 270]
    images = torch.cat([part.inputs for part in parts]) * data.std + data.mean
    labels = torch.cat([part.targets for part in parts])
    found = sorted(zip((images * 16).round().int().flatten(1).tolist(), labels.tolist(), strict=True))
    bunch = load_digits()
    assert found == sorted(zip(bunch.data.astype(int).tolist(), bunch.target.tolist(), strict=True))


def test_digits_are_normalised_by_the_training_images() -> None:
    """Their mean is 0 and their standard deviation 1; the held-out images had no part in it."""
    data = Digits()
    assert data.train.inputs.dtype is torch.float32
    assert data.train.inputs.shape[1:] == data.input_shape == (1, 8, 8)
    assert abs(data.train.inputs.mean().item()) < 1e-5
    assert abs(data.train.inputs.std(correction=0).item() - 1) < 1e-5
    assert abs(data.val.inputs.mean().item()) > 1e-5


def test_digits_hold_out_each_class_in_proportion() -> None:
    """A tenth of each part is of each class, about."""
    data = Digits()
    for part in (data.train, data.val, data.test):
        counts = torch.bincount(part.targets, minlength=data.num_classes)
        assert (counts - len(part) / 10).abs().max() <= 0.05 * len(part) / 10 + 2


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_digits_are_enlarged_for_models_of_larger_images(interpolation: Any) -> None:
    """The attributes say the size."""
    data = Digits(image_size=28, interpolation=interpolation)
    assert data.image_size == 28
    assert data.train.inputs.shape[1:] == data.input_shape == (1, 28, 28)
    assert data.num_features == 784


def test_digits_need_no_import_of_scikit_learn() -> None:
    """Which would take longer than the first epoch."""
    code = "import sys; from flambeau.data.digits import Digits; Digits(); print('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of a traceback of an import."""
    monkeypatch.setattr("flambeau.data.sklearn_files.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"flambeau\[digits\]"):
        Digits()


def test_augmented_digits_are_shifted_by_at_most_an_eighth() -> None:
    """And only in training."""
    data = Digits(image_size=16, augment=True)
    assert data.eval_transform is None
    image, label = data.train[0]
    shifted = {data.train_transform((image, label))[0].numpy().tobytes() for _ in range(200)}
    assert len(shifted) == 25
    centre = torch.full((1, 20, 20), -data.mean / data.std)
    centre[:, 2:18, 2:18] = image
    windows = {centre[:, y : y + 16, x : x + 16].numpy().tobytes() for y in range(5) for x in range(5)}
    assert shifted == windows


@pytest.mark.parametrize("kwargs", [{}, {"task": "regression", "num_targets": 3}, {"dtype": "uint8"}])
def test_synthetic_data_is_a_function_of_the_seed(kwargs: Any) -> None:
    """Whatever the global generator is at, and however many threads there are."""
    torch.manual_seed(1)
    a = Synthetic(size=100, seed=4, **kwargs)
    torch.manual_seed(2)
    b = Synthetic(size=100, seed=4, **kwargs)
    c = Synthetic(size=100, seed=5, **kwargs)
    assert torch.equal(a.train.fetch(torch.arange(70))[0], b.train.fetch(torch.arange(70))[0])
    assert torch.equal(a.train.fetch(torch.arange(70))[1], b.train.fetch(torch.arange(70))[1])
    assert not torch.equal(a.train.fetch(torch.arange(70))[0], c.train.fetch(torch.arange(70))[0])


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_synthetic_data_has_the_shape_and_type_asked_for(dtype: Any) -> None:
    """And says so."""
    data = Synthetic(size=50, input_shape=[3, 4, 5], num_classes=7, dtype=dtype)
    image, target = data.train[0]
    assert image.shape == data.input_shape == (3, 4, 5)
    assert image.dtype is getattr(torch, dtype)
    assert target.dtype is torch.int64
    assert (data.in_channels, data.image_size, data.num_features) == (3, 5, 60)


def test_synthetic_classes_can_be_learned() -> None:
    """The nearest class mean of the training samples is right for most of the held-out ones."""
    data = Synthetic(size=600, input_shape=[16], num_classes=4)
    inputs, labels = data.train.fetch(torch.arange(len(data.train)))
    means = torch.stack([inputs[labels == label].mean(0) for label in range(4)])
    held_out, answers = data.val.fetch(torch.arange(len(data.val)))
    assert (torch.cdist(held_out, means).argmin(1) == answers).float().mean() > 0.9


def test_synthetic_targets_can_be_learned() -> None:
    """A linear fit explains most of a regression without noise."""
    data = Synthetic("regression", size=600, input_shape=[8], noise=0.0)
    inputs, targets = data.train.fetch(torch.arange(len(data.train)))
    solution = torch.linalg.lstsq(inputs, targets).solution
    held_out, answers = data.val.fetch(torch.arange(len(data.val)))
    assert ((held_out @ solution - answers) ** 2).mean() < 0.3 * answers.var()


def test_bytes_are_normalised_a_batch_at_a_time() -> None:
    """The model sees float32 of the same scale as without bytes."""
    data = Synthetic(size=400, input_shape=[2, 3, 3], dtype="uint8")
    assert data.train.inputs.dtype is torch.uint8
    batch = next(EvalFeeder(data.train, batch_size=256, batch_transform=data.batch_transform).batches())
    same = Synthetic(size=400, input_shape=[2, 3, 3]).train.fetch(torch.arange(256))[0]
    assert batch.inputs.dtype is torch.float32
    assert (batch.inputs - same).abs().max() < 1 / 32 + 1e-4


@pytest.fixture(params=["npz", "safetensors"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    def write_file(name: str, **arrays: Any) -> Path:
        path = tmp_path / f"{name}.{request.param}"
        if request.param == "npz":
            np.savez(path, **arrays)
        else:
            save_file(arrays, path)
        return path

    return write_file


def test_array_files_are_data(write: Any) -> None:
    """Floats become float32, whole targets int64; what the model needs to know is offered."""
    path = write("train", inputs=np.random.rand(40, 3, 6, 6), targets=(np.arange(40) % 5).astype(np.int16))
    data = ArrayFiles(train=path, val_fraction=0.25, test_fraction=0.25, stratified=True)
    assert [len(part) for part in (data.train, data.val, data.test)] == [20, 10, 10]
    assert rows(data.train).isdisjoint(rows(data.val) | rows(data.test))
    assert data.train[0][0].dtype is torch.float32
    assert data.train[0][1].dtype is torch.int64
    assert (data.num_classes, data.in_channels, data.image_size, data.num_features) == (5, 3, 6, 108)
    assert torch.bincount(data.val.fetch(torch.arange(10))[1]).tolist() == [2] * 5


def test_files_of_their_own_are_taken_as_they_are(write: Any) -> None:
    """Validation and test files are not cut from the training file; classes are counted over all."""
    files = {
        name: write(name, x=np.full((size, 2), size, np.float32), y=np.arange(size))
        for name, size in (("train", 4), ("val", 6), ("test", 3))
    }
    data = ArrayFiles(**files, inputs="x", targets="y", val_fraction=0.5)
    assert [len(part) for part in (data.train, data.val, data.test)] == [4, 6, 3]
    assert data.num_classes == 6
    assert data.test[0][0].tolist() == [3, 3]


def test_several_inputs_make_a_dict_and_targets_may_be_missing(write: Any) -> None:
    """As a model with several inputs gets them."""
    data = ArrayFiles(write("t", a=np.ones((4, 2)), b=np.arange(4)), inputs=["a", "b"], targets=None)
    inputs, targets = data.train[1]
    assert inputs["a"].tolist() == [1, 1]
    assert inputs["b"] == 1
    assert targets is None
    assert data.val is None and data.test is None


def test_a_wrong_array_name_gets_the_nearest_right_one(write: Any) -> None:
    """Or the list of those that there are."""
    path = write("t", inputs=np.ones(3), labels=np.ones(3))
    with pytest.raises(UsageError, match="did you mean 'labels'"):
        ArrayFiles(path, targets="label")
    with pytest.raises(UsageError, match="it has inputs, labels"):
        ArrayFiles(path, targets="y")


def test_a_file_with_python_objects_is_refused_unread(tmp_path: Path) -> None:
    """Reading it would run what is in it."""

    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    np.savez(tmp_path / "t.npz", inputs=np.array([Bomb()], dtype=object), targets=np.ones(1))
    with pytest.raises(UsageError, match="numeric arrays only"):
        ArrayFiles(tmp_path / "t.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["t.npz", "t.safetensors", "t.csv", "missing.npz"])
def test_files_that_cannot_be_read_are_named(tmp_path: Path, name: str) -> None:
    """Damaged, of another kind, or not there."""
    if name != "missing.npz":
        (tmp_path / name).write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(UsageError, match=name):
        ArrayFiles(tmp_path / name)


def test_stratifying_needs_classes(write: Any) -> None:
    """Targets of a regression have none."""
    with pytest.raises(UsageError, match="whole numbers"):
        ArrayFiles(write("t", inputs=np.ones((3, 1)), targets=np.ones((3, 1))), stratified=True)


def test_the_data_room_leaves_heavy_packages_alone() -> None:
    """Importing every data module imports neither torchvision nor scikit-learn nor PIL."""
    code = (
        "import sys, flambeau.data.digits, flambeau.data.vision, flambeau.data.image_folder, flambeau.data.arrays\n"
        "print(*{'sklearn', 'torchvision', 'PIL', 'safetensors', 'torch._dynamo'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
    assert importlib.util.find_spec("sklearn")


class TestArraysOfNumbers:
    """Tables of one's own: inputs to be standardised, numbers to be predicted."""

    @staticmethod
    def write(folder: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        rng = np.random.default_rng(0)
        inputs, targets = rng.normal(7, 3, (50, 4)).astype(np.float32), rng.normal(100, 20, (50, 1)).astype(np.float32)
        np.savez(folder / "table.npz", inputs=inputs, targets=targets)
        return inputs, targets

    def test_inputs_are_standardised_if_asked_by_the_training_samples_alone(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        data = ArrayFiles(tmp_path / "table.npz", val_fraction=0.3, standardize=True)
        batch = next(EvalFeeder(data.train, batch_size=50, batch_transform=data.batch_transform).batches())
        assert batch.inputs.mean(0).abs().max() < 1e-5
        assert (batch.inputs.std(0, correction=0) - 1).abs().max() < 1e-5
        assert ArrayFiles(tmp_path / "table.npz").batch_transform is None

    def test_numbers_to_be_predicted_say_how_large_they_are(self, tmp_path: Path) -> None:
        _, targets = self.write(tmp_path)
        data = ArrayFiles(tmp_path / "table.npz")
        assert data.target_mean == pytest.approx(targets.mean(dtype=float))
        assert data.target_std == pytest.approx(targets.std(dtype=float))

    def test_images_are_not_standardised_feature_by_feature(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "images.npz", inputs=np.zeros((4, 1, 3, 3), np.float32), targets=np.arange(4))
        with pytest.raises(UsageError, match=r"data\.standardize"):
            ArrayFiles(tmp_path / "images.npz", standardize=True)
