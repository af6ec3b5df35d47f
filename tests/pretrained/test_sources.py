"""Where weights are read from: runs, checkpoints, safetensors and torch files; and that none of it runs code."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.tasks import linear, make_trainer, points
from torch import nn

from flambeau import load_model, load_pretrained
from flambeau.checkpoint.publish import record_of
from flambeau.checkpoint.reading import Checkpoint, manifest_bytes
from flambeau.config.sections import EmaSettings
from flambeau.errors import FlambeauError, UsageError


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """The weights of a network, none of them what a new one has."""
    torch.manual_seed(7)
    return {name: torch.randn_like(item.float()).to(item.dtype) + 3 for name, item in net().state_dict().items()}


def assert_loaded(state: dict[str, torch.Tensor], path: Path | str, **settings: Any) -> None:
    model = net()
    report = load_pretrained(model, path, **settings)
    assert len(report.matched) == len(state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


class TestFiles:
    def test_a_safetensors_file(self, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
        save_file(state, tmp_path / "weights.safetensors")
        assert_loaded(state, tmp_path / "weights.safetensors")

    def test_several_safetensors_files_by_their_index_or_their_folder(
        self, state: dict[str, torch.Tensor], tmp_path: Path
    ) -> None:
        names = list(state)
        files = {"model-1.safetensors": names[:3], "model-2.safetensors": names[3:]}
        for file, own in files.items():
            save_file({name: state[name] for name in own}, tmp_path / file)
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {name: file for file, own in files.items() for name in own}}))
        assert_loaded(state, index)
        assert_loaded(state, tmp_path)

    def test_an_index_cannot_name_a_file_elsewhere(self, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
        save_file(state, tmp_path / "secret.safetensors")
        (tmp_path / "in").mkdir()
        index = tmp_path / "in" / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": dict.fromkeys(state, "../secret.safetensors")}))
        with pytest.raises(UsageError, match="no safetensors file beside it"):
            load_pretrained(net(), index)

    @pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
    @pytest.mark.parametrize("legacy", [False, True])
    def test_a_torch_file_of_a_state_dict(
        self, state: dict[str, torch.Tensor], tmp_path: Path, suffix: str, legacy: bool
    ) -> None:
        file = tmp_path / f"weights{suffix}"
        torch.save(OrderedDict(state), file, _use_new_zipfile_serialization=not legacy)
        assert_loaded(state, file)

    @pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", "whatever"])
    def test_a_torch_file_that_holds_the_weights_beside_other_things(
        self, state: dict[str, torch.Tensor], tmp_path: Path, key: str
    ) -> None:
        content = {key: state, "epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "args": {"a": 1}}
        torch.save(content, tmp_path / "weights.pt")
        assert_loaded(state, tmp_path / "weights.pt")

    def test_key_chooses_among_several(self, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
        torch.save({"first": net().state_dict(), "second": state}, tmp_path / "weights.pt")
        with pytest.raises(UsageError, match=r"several times\n  say which by `key`: first, second"):
            load_pretrained(net(), tmp_path / "weights.pt")
        assert_loaded(state, tmp_path / "weights.pt", key="second")
        with pytest.raises(UsageError, match="no entry 'third'"):
            load_pretrained(net(), tmp_path / "weights.pt", key="third")

    def test_values_take_the_models_type(self, tmp_path: Path) -> None:
        half = {name: item.half() for name, item in linear().state_dict().items()}
        save_file(half, tmp_path / "half.safetensors")
        model = linear(seed=5).double()
        load_pretrained(model, tmp_path / "half.safetensors")
        assert model.weight.dtype == torch.float64
        assert torch.equal(model.weight, half["weight"].double())

    @pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights.pth"])
    def test_a_damaged_file_is_an_error_that_names_it(
        self, state: dict[str, torch.Tensor], tmp_path: Path, name: str
    ) -> None:
        file = tmp_path / name
        if name.endswith("safetensors"):
            save_file(state, file)
        else:
            torch.save(state, file)
        file.write_bytes(file.read_bytes()[:-200])
        with pytest.raises(UsageError, match="is no whole"):
            load_pretrained(net(), file)

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("missing.pt", "does not exist"),
            ("runs/missing", "does not exist"),
            (".", "neither a run, nor a checkpoint"),
            ("http://x/y.pt", "nothing is read from http"),
        ],
    )
    def test_a_path_with_nothing_at_its_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UsageError, match=text):
            load_pretrained(net(), name)

    def test_an_error_leaves_the_model_as_it_was(self, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
        state["2.weight"] = torch.zeros(9, 5)
        save_file(state, tmp_path / "weights.safetensors")
        model = net()
        before = {name: item.clone() for name, item in model.state_dict().items()}
        with pytest.raises(UsageError):
            load_pretrained(model, tmp_path / "weights.safetensors")
        assert all(torch.equal(item, before[name]) for name, item in model.state_dict().items())

    def test_two_values_for_one_tied_weight_are_refused(self, tmp_path: Path) -> None:
        model = nn.Sequential(OrderedDict(embed=nn.Linear(3, 3, bias=False), out=nn.Linear(3, 3, bias=False)))
        model.out.weight = model.embed.weight
        file = tmp_path / "weights.safetensors"
        save_file({"embed.weight": torch.ones(3, 3), "out.weight": torch.zeros(3, 3)}, file)
        with pytest.raises(UsageError, match="are one tensor in the model"):
            load_pretrained(model, file)
        save_file({"embed.weight": torch.ones(3, 3), "out.weight": torch.ones(3, 3)}, file)
        load_pretrained(model, file)
        assert torch.equal(model.out.weight, torch.ones(3, 3))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of five steps whose loss is best at an early one, with an average of its weights."""
    trainer = make_trainer(
        linear(),
        points(seed=1),
        steps=5,
        val_data=points(seed=9),
        validate_every_steps=1,
        every_steps=1,
        keep_last=9,
        monitor="val/ema/loss",
        ema=EmaSettings(decay=0.5),
        run_dir=tmp_path / "run",
    )
    trainer.fit()
    return tmp_path / "run"


def stored(run: Path, checkpoint: str, part: str) -> torch.Tensor:
    """The weight of a linear model, as a checkpoint's own file has it."""
    from safetensors.torch import load_file

    return load_file(run / "checkpoints" / checkpoint / f"{part}.safetensors")["weight"]


class TestRuns:
    @pytest.mark.parametrize(
        ("settings", "checkpoint", "part"),
        [
            ({}, "best", "ema"),  # what the monitored score is of
            ({"weights": "model"}, "best", "model"),
            ({"checkpoint": "last"}, "last", "ema"),
            ({"checkpoint": 3, "weights": "model"}, "step-00000003", "model"),
        ],
    )
    def test_a_run_gives_the_checkpoint_and_the_weights_that_are_asked_for(
        self, run: Path, settings: dict[str, Any], checkpoint: str, part: str
    ) -> None:
        model = linear(seed=5)
        report = load_pretrained(model, run, **settings)
        assert torch.equal(model.weight, stored(run, checkpoint, part))
        assert ("averaged weights" in report.origin) == (part == "ema")

    @pytest.mark.parametrize("link", ["best", "last", "step-00000002"])
    def test_a_checkpoint_is_a_source_itself(self, run: Path, link: str) -> None:
        model = linear(seed=5)
        load_pretrained(model, run / "checkpoints" / link)
        assert torch.equal(model.weight, stored(run, link, "ema"))

    def test_the_best_of_a_score_that_falls_is_the_lowest(self, tmp_path: Path) -> None:
        """Without the trainer that knows it, the run's own link tells; the worst would be loaded otherwise."""
        trainer = make_trainer(
            linear(), steps=4, val_data=points(), validate_every_steps=1, every_steps=1, keep_last=9,
            run_dir=tmp_path / "run",
        )  # fmt: skip
        trainer.fit()
        assert trainer.state.best_step == 4 and trainer.mode == "min"
        for link in (True, False):
            if not link:
                (tmp_path / "run" / "checkpoints" / "best").unlink()
            report = load_pretrained(linear(seed=5), tmp_path / "run")
            assert "step 4" in report.origin

    def test_a_damaged_checkpoint_is_passed_over(self, run: Path) -> None:
        file = run / "checkpoints" / "last" / "ema.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"x")
        model = linear(seed=5)
        with pytest.warns(UserWarning, match="damaged"):
            report = load_pretrained(model, run, checkpoint="last")
        assert "step 4" in report.origin
        with pytest.raises(UsageError, match="damaged"):
            load_pretrained(model, run, checkpoint=5)

    def test_a_checkpoint_that_several_processes_wrote_in_pieces(self) -> None:
        """Its tensors are put together one at a time."""

        class Pieces(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.zeros(5, 3))
                self.one = nn.Parameter(torch.zeros(1, 2))
                self.register_buffer("count", torch.zeros((), dtype=torch.int64))

        path = Path(__file__).parents[1] / "checkpoint" / "format-2"
        model = Pieces()
        load_pretrained(model, path)
        expected = Checkpoint.open(path).load("model")["model"]
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, expected[name].to(tensor.dtype)), name
            assert tensor.any()

    def test_an_average_that_was_not_kept_is_an_error(self, tmp_path: Path) -> None:
        make_trainer(linear(), run_dir=tmp_path / "run").fit()
        with pytest.raises(UsageError, match="kept no average"):
            load_pretrained(linear(), tmp_path / "run", weights="ema")


MARK = "executed"


class Trap:
    """A pickle that leaves a mark when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def plant(file: Path, mark: Path, kind: str) -> None:
    """Put a pickle that runs code in place of a file: bare, as torch writes it, or within torch's archive."""
    trap = Trap(mark)
    match kind:
        case "pickle":
            file.write_bytes(pickle.dumps(trap))
        case "torch":
            torch.save({"model": trap, "state_dict": trap}, file)
        case "legacy":
            torch.save({"model": trap}, file, _use_new_zipfile_serialization=False)


def test_the_trap_works(tmp_path: Path) -> None:
    """What the tests below say would be empty otherwise."""
    for kind in ("pickle", "torch", "legacy"):
        mark = tmp_path / kind
        plant(tmp_path / "trap", mark, kind)
        if kind == "pickle":
            pickle.loads((tmp_path / "trap").read_bytes())
        else:
            torch.load(tmp_path / "trap", weights_only=False)
        assert mark.exists()


class TestNothingIsExecuted:
    @pytest.mark.parametrize("kind", ["pickle", "torch", "legacy"])
    @pytest.mark.parametrize(
        "name", ["w.pt", "w.pth", "w.bin", "w.ckpt", "w.tar", "w.safetensors", "m.safetensors.index.json"]
    )
    def test_a_pickle_that_runs_code_is_refused_wherever_weights_are_read(
        self, tmp_path: Path, kind: str, name: str
    ) -> None:
        plant(tmp_path / name, tmp_path / MARK, kind)
        with pytest.raises(UsageError) as caught:
            load_pretrained(net(), tmp_path / name)
        assert not (tmp_path / MARK).exists()
        assert name in str(caught.value)

    def test_the_refusal_says_what_to_do(self, tmp_path: Path) -> None:
        plant(tmp_path / "w.pt", tmp_path / MARK, "torch")
        with pytest.raises(UsageError, match=r"holds more than tensors.*\n.*safetensors.torch.save_file"):
            load_pretrained(net(), tmp_path / "w.pt")

    @pytest.mark.slow
    def test_no_file_of_a_run_folder_is_unpickled(self, tmp_path: Path) -> None:
        """Each file in turn is a pickle that runs code, its checksum made right; others lie where one might look."""
        from flambeau.cli import main

        whole, run, mark = tmp_path / "whole", tmp_path / "run", tmp_path / MARK
        length = ["trainer.epochs=null", "trainer.steps=2", "trainer.ema={}", "trainer.debug=few_batches"]
        assert main(["train", "mlp", *length, "--run-dir", str(whole)]) == 0
        step = (whole / "checkpoints" / "last").resolve().name
        files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and not path.is_symlink()]
        beside = ["checkpoints/checkpoint.pth", f"checkpoints/{step}/random.pkl", "loop_state.pkl", "model.pt"]
        assert {
            "config.yaml",
            "status.json",
            "data_values.json",
            "model.safetensors",
            "state.json",
            "manifest.json",
        } <= {file.name for file in files}
        model = load_model(whole)
        for number, planted in enumerate([*files, *map(Path, beside)]):
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(whole, run, symlinks=True)
            plant(run / planted, mark, ("pickle", "torch", "legacy")[number % 3])
            sign(run / "checkpoints" / step)
            for use in (
                lambda: load_model(run),
                lambda: load_pretrained(model, run, strict=False),
                lambda: load_pretrained(model, run / "checkpoints" / step),
                lambda: main(["resume", str(run), "trainer.steps=3"]),
            ):
                with contextlib.suppress(Exception):  # whatever is said of the damage
                    use()
                assert not mark.exists(), planted


def sign(checkpoint: Path) -> None:
    """Make the checksums of a checkpoint those of its files, as who plants one would."""
    try:
        manifest = dict(Checkpoint.open(checkpoint).manifest)
    except FlambeauError:
        return  # the manifest itself is the pickle
    records = {name: record_of(checkpoint / name) for name in manifest["files"]}
    manifest["files"] = {name: {"size": item.size, "sha256": item.sha256} for name, item in records.items()}
    (checkpoint / "manifest.json").write_bytes(manifest_bytes(manifest))
