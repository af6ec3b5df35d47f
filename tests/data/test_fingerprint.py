"""Data that changed between a run's start and its resume are noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.projects import CONFIG, InProcess, Project
from torch.utils.data import IterableDataset, Subset

from flambeau.data import ArrayDataset
from flambeau.data.fingerprint import fingerprint, what_changed


class Mapped:
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def digest(dataset: Any, mode: Any = "sampled") -> Any:
    return (fingerprint(dataset, mode) or {})["digest"]


def arrays(size: int = 1000) -> torch.Tensor:
    return torch.randn(size, 3, generator=torch.Generator().manual_seed(1))


def test_a_fingerprint_depends_on_the_content_and_nothing_else() -> None:
    """The same content in other memory, or as a subset, is the same."""
    whole = ArrayDataset(arrays(), torch.arange(1000))
    assert digest(whole) == digest(ArrayDataset(arrays(), torch.arange(1000)))
    torch.manual_seed(5)
    assert digest(whole) == digest(whole.subset(range(1000)))
    assert digest(whole) != digest(ArrayDataset(arrays(), torch.arange(1000) + 1))
    assert digest(whole) != digest(ArrayDataset(arrays().double(), torch.arange(1000)))
    assert digest(whole) != digest(whole.subset(list(range(999, -1, -1))))


def test_one_changed_number_is_found_by_the_full_fingerprint() -> None:
    """The sampled one reads the first, the last and some between."""
    changed = arrays()
    changed[501, 1] += 1e-6
    before, after = ArrayDataset(arrays()), ArrayDataset(changed)
    assert digest(before, "full") != digest(after, "full")
    changed = arrays()
    changed[-1] = 0
    assert digest(before) != digest(ArrayDataset(changed))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", 1), ("b", 1)),
        (("a", 1), ("a", 1.0)),
        ({"inputs": {"x": "ab", "y": "c"}}, {"inputs": {"x": "a", "y": "bc"}}),
        ((np.zeros(4, np.int8), 0), (np.zeros(4, np.uint8), 0)),
        ((torch.zeros(2, 3), 0), (torch.zeros(3, 2), 0)),
        (([1, [2]], None), ([1, 2], None)),
        ((b"\x00", True), (b"\x00", False)),
    ],
)
def test_samples_of_any_form_are_told_apart(one: Any, other: Any) -> None:
    """By content, type and shape."""
    assert digest(Mapped([one] * 3)) == digest(Mapped([one] * 3))
    assert digest(Mapped([one, one, one])) != digest(Mapped([one, one, other]))
    assert digest(Subset(Mapped([one, other]), [0, 0])) != digest(Subset(Mapped([one, other]), [0, 1]))


def test_what_cannot_be_known_is_not_made_up() -> None:
    """Of a stream, of a dataset that draws its samples itself, and if it is not wanted: the length."""

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([1])

    generator = np.random.default_rng(0)

    class Random(Mapped):
        def __getitem__(self, index: int) -> Any:
            return float(generator.normal())

    assert fingerprint(Stream()) == {"samples": None, "kind": "length", "digest": None}

    class Sized(Stream):
        def __len__(self) -> int:
            return 1

    assert fingerprint(Sized()) == {"samples": 1, "kind": "length", "digest": None}
    assert fingerprint(Random([0, 0])) == {"samples": 2, "kind": "length", "digest": None}
    assert fingerprint(ArrayDataset(arrays()), "off") == {"samples": 1000, "kind": "length", "digest": None}
    assert fingerprint(None) is None


def test_a_dataset_that_draws_from_the_global_generators_has_one() -> None:
    """They are seeded while it is read, and left as they were."""

    class Seeded(Mapped):
        def __getitem__(self, index: int) -> Any:
            return torch.rand(2) + float(np.random.rand())

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = digest(Seeded([0] * 5))
    assert torch.equal(torch.rand(1), expected)
    assert first == digest(Seeded([0] * 5)) is not None


def test_a_dataset_may_say_its_fingerprint_itself() -> None:
    """A version, or a checksum that somebody keeps."""

    class Own(Mapped):
        version = "v1"

        def fingerprint(self) -> str:
            return self.version

    before = fingerprint(Own([1, 2]))
    assert before == {"samples": 2, "kind": "own", "digest": "v1"}
    Own.version = "v2"
    assert "another content" in (what_changed(before, fingerprint(Own([1, 2]))) or "")
    assert digest(Subset(Own([1, 2]), [0])) != digest(Subset(Own([1, 2]), [1]))


def test_a_sample_that_cannot_be_read_is_the_run_s_affair() -> None:
    """It says which one it was."""

    class Broken(Mapped):
        def __getitem__(self, index: int) -> Any:
            if index == 1:
                raise OSError("damaged")
            return index

    assert digest(Broken([0, 0, 0])) is not None


def test_changes_are_told_as_far_as_they_are_known() -> None:
    """Lengths always; digests of one kind only."""
    small, full = fingerprint(ArrayDataset(arrays())), fingerprint(ArrayDataset(arrays()), "full")
    assert what_changed(small, full) is None
    shorter = fingerprint(ArrayDataset(arrays(1)))
    assert what_changed(small, shorter) == "had 1000 samples and have 1 sample now"
    assert what_changed(small, None) == "are gone"
    assert what_changed(None, None) is None


FILE_DATA = """

@register.data("from_file")
class FromFile(DataModule):
    num_classes: int = 3

    def __init__(self, seed: int = 0) -> None:
        found = np.load("points.npz")
        self.train = ArrayDataset(torch.from_numpy(found["x"]), torch.from_numpy(found["y"]))
        self.val = ArrayDataset(torch.from_numpy(found["x"]) + 1, torch.from_numpy(found["y"]))
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The small project, its data in a file."""
    project = Project.write(tmp_path / "project", parts=FILE_DATA, config=CONFIG.replace("points", "from_file"))
    write_points(project.root)
    return project


def write_points(root: Path, *, change: float = 0.0, size: int = 40) -> None:
    inputs = np.random.default_rng(0).normal(size=(size, 6)).astype(np.float32)
    inputs[-1, -1] += change
    np.savez(root / "points.npz", x=inputs, y=np.arange(size) % 3)


def stopped(flambeau: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREEMPT_AT", "7")
    flambeau("train", "tiny", "--run-dir", "run", expect=75)
    monkeypatch.delenv("PREEMPT_AT")


def test_the_run_folder_has_the_fingerprints(flambeau: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each part."""
    stopped(flambeau, monkeypatch)
    record = json.loads((flambeau.project.root / "run" / "data.json").read_text())
    assert {part: found and found["samples"] for part, found in record.items()} == {
        "train": 40,
        "val": 40,
        "test": None,
    }
    assert record["train"]["kind"] == "sampled" and record["train"]["digest"] != record["val"]["digest"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"change": 1.0}, "the training data have another content than they had"),
        ({"size": 39}, "the training data had 40 samples and have 39 samples now"),
    ],
)
def test_a_resume_with_other_data_is_refused_unless_forced(
    flambeau: InProcess, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    """The content too, where the length is the same: what changed, and the way out."""
    stopped(flambeau, monkeypatch)
    write_points(flambeau.project.root, **change)
    answer = flambeau("resume", "run", expect=1)
    assert message in answer.err and "--force" in answer.err
    answer = flambeau("resume", "run", "--force")
    assert "forced to go on" in answer.err
    flambeau("resume", "run", "trainer.epochs=6", "--force")


def test_a_resume_with_the_same_data_in_a_new_file_goes_on(
    flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied to another machine, say; and the record can be made fuller meanwhile."""
    stopped(flambeau, monkeypatch)
    write_points(flambeau.project.root)
    flambeau("resume", "run", "data.fingerprint=full")
    assert json.loads((flambeau.project.root / "run" / "status.json").read_text())["state"] == "finished"
