"""Settings as people of other templates type them: several in one text, files as mix-ins, folders from variables."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flambeau.cli import main
from flambeau.config import load_config
from flambeau.config.bindings import split_bindings
from flambeau.errors import ConfigError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose configurations stand on a shipped one."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/short.yaml").write_text("base: [synthetic]\ntrainer: {epochs: 1, debug: one_batch}\n")
    (tmp_path / "configs/wide.yaml").write_text("model: {hidden_size: 512}\n")
    (tmp_path / "configs/slow.yaml").write_text("optimizer: {lr: 1e-5}\nmodel: {hidden_size: 8}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestBindings:
    @pytest.mark.parametrize(
        ("text", "settings"),
        [
            ("a.b=1;c.d=2", ["a.b=1", "c.d=2"]),
            (" a=1 ; b = 2 ;; ", ["a=1", "b = 2"]),
            ("a='x;y';b=1", ["a='x;y'", "b=1"]),
            ('a="x;\\";y";b=1', ['a="x;\\";y"', "b=1"]),
            ("a={b: 'x;y', c: 1};d=2", ["a={b: 'x;y', c: 1}", "d=2"]),
            ("a=it's;b=don't", ["a=it's", "b=don't"]),  # no YAML: an apostrophe
            ("a='it''s; so';b=1", ["a='it''s; so'", "b=1"]),
            ("", []),
        ],
    )
    def test_semicolons_part_settings_but_not_in_quotes(self, text: str, settings: list[str]) -> None:
        assert split_bindings(text) == settings

    @given(st.lists(st.tuples(st.from_regex(r"[a-z.]+", fullmatch=True), st.text("ab;'{ ", max_size=8))))
    def test_quoted_values_come_out_as_they_went_in(self, pairs: list[tuple[str, str]]) -> None:
        written = [f"{key}='{value.replace(chr(39), chr(39) * 2)}'" for key, value in pairs]
        assert split_bindings(";".join(written)) == written

    def test_a_command_takes_them_and_settings_beside_them_win(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["config", "short", "-b", "optimizer.lr=0.25;seed=3", "seed=4"]) == 0
        shown = capsys.readouterr().out
        assert "lr: 0.25" in shown
        assert "seed: 4" in shown

    def test_a_run_can_begin_and_go_on_with_them(self, folder: Path) -> None:
        assert main(["train", "short", "--run-dir", "run", "-b", "trainer.epochs=1; optimizer.lr=0.125"]) == 0
        assert "lr: 0.125" in (folder / "run/config.yaml").read_text()
        longer = ["trainer.debug=null", "--force"]
        assert main(["resume", "run", "-b", "trainer.epochs=null;trainer.steps=3", *longer]) == 0
        assert "steps: 3" in (folder / "run/config.yaml").read_text()

    def test_every_tracker_can_be_switched_off(self, folder: Path) -> None:
        """The shipped configurations have one; the record of the run stays."""
        assert main(["train", "short", "--run-dir", "with"]) == 0
        assert main(["train", "short", "--run-dir", "without", "tracking=null"]) == 0
        assert (folder / "with/tensorboard").is_dir()
        assert not (folder / "without/tensorboard").exists()
        assert (folder / "without/metrics.jsonl").read_bytes() == (folder / "with/metrics.jsonl").read_bytes()

    def test_a_mistyped_one_is_refused_like_any(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["train", "short", "-b", "seed=1; optimizer.weigth_decay=1"]) == 2
        assert (
            "command line: optimizer.weigth_decay: adamw takes no such argument; did you mean 'weight_decay'?"
            in capsys.readouterr().err
        )


class TestMixIns:
    def test_later_files_win_over_earlier_ones(self) -> None:
        wide, slow = load_config("short+wide"), load_config("short+wide+slow")
        assert wide.values["model"]["hidden_size"] == 512
        assert (slow.values["model"]["hidden_size"], slow.values["optimizer"]["lr"]) == (8, 1e-5)
        assert str(slow.origins["model.hidden_size"]) == "configs/slow.yaml:2"

    def test_paths_can_be_joined_too(self) -> None:
        assert load_config("short+configs/wide.yaml").values["model"]["hidden_size"] == 512

    def test_the_run_lies_under_both_names(self, folder: Path) -> None:
        assert main(["train", "short+wide"]) == 0
        (run,) = (folder / "runs/short+wide").iterdir()
        assert "hidden_size: 512" in (run / "config.yaml").read_text()
        assert main(["evaluate", str(run), "--split", "val"]) == 0

    def test_a_file_of_such_a_name_is_meant_first(self, folder: Path) -> None:
        (folder / "configs/short+wide.yaml").write_text("base: [short]\nseed: 77\n")
        assert load_config("short+wide").values["seed"] == 77

    def test_one_that_is_missing_is_told_with_the_nearest(self) -> None:
        with pytest.raises(ConfigError) as caught:
            load_config("short+widde")
        assert [str(problem) for problem in caught.value.problems] == [
            "widde: no configuration of this name; looked in configs and among Flambeau's own; did you mean 'wide'?"
        ]


class TestFolders:
    def test_runs_go_where_a_variable_says(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """`$RESULTS_DIR`, as many scripts have it; absolute or within the project."""
        monkeypatch.setenv("RESULTS_DIR", str(folder / "elsewhere"))
        (folder / "configs/there.yaml").write_text("base: [short]\nruns_dir: ${env:RESULTS_DIR}\n")
        assert main(["train", "there"]) == 0
        assert len(list((folder / "elsewhere/there").iterdir())) == 1
        assert not (folder / "runs").exists()

    def test_a_variable_that_is_not_set_is_an_error_before_anything_is_made(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (folder / "configs/there.yaml").write_text("base: [short]\nruns_dir: ${env:RESULTS_DIR}\n")
        assert main(["train", "there"]) == 2
        assert "RESULTS_DIR" in capsys.readouterr().err
        assert not (folder / "runs").exists()

    def test_numbered_folders_are_made_by_their_names_and_never_cleared(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["train", "short", "--run-dir", "logs/run_0"]) == 0
        before = (folder / "logs/run_0/metrics.jsonl").read_bytes()
        assert main(["train", "short", "--run-dir", "logs/run_0"]) == 2
        assert "holds a run already (finished)" in capsys.readouterr().err
        assert main(["train", "short", "--run-dir", "logs/run_0", "--clear"]) == 2
        assert (folder / "logs/run_0/metrics.jsonl").read_bytes() == before
