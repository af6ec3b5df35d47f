"""The command line as a whole: help, exit statuses, and errors that are the user's to mend."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.projects import InProcess, Project, environment

from flambeau.cli import COMMANDS

TYPOS = """\
sede: 3
data: {name: points, batch_size: 8}
model: {name: mlp, in_features: 6, hiden_size: 5, num_classes: 3}
criterion: {name: cross_entropy}
optimizer: {name: adamw, weigth_decay: 0.1}
trainer: {epochs: 1, erly_stopping: {patience: 3}}
"""


class TestHelp:
    def test_the_overview_names_every_command_and_the_exit_statuses(self, flambeau: InProcess) -> None:
        answer = flambeau("--help")
        for name, text in COMMANDS.items():
            assert name in answer.out
            assert text in answer.out
        assert "75" in answer.out
        assert flambeau("-h").out == answer.out

    def test_without_a_command_it_is_shown_too_as_wrong_usage(self, flambeau: InProcess) -> None:
        assert "usage: flambeau COMMAND" in flambeau(expect=2).out

    @pytest.mark.parametrize("name", COMMANDS)
    def test_each_command_has_a_help_with_an_example(self, flambeau: InProcess, name: str) -> None:
        answer = flambeau(name, "--help")
        assert answer.out.startswith(f"usage: flambeau {name}")
        assert answer.out.count(f"flambeau {name}") >= 2

    @pytest.mark.parametrize("name", COMMANDS)
    def test_the_overview_says_of_a_command_what_its_file_says(self, name: str) -> None:
        import importlib

        assert COMMANDS[name] == importlib.import_module(f"flambeau.cli.{name.replace('-', '_')}").HELP

    def test_the_version_is_told(self, flambeau: InProcess) -> None:
        from flambeau import __version__

        assert flambeau("--version").out == f"flambeau {__version__}\n"


class TestWrongUsage:
    def test_an_unknown_command_is_answered_with_the_nearest(self, flambeau: InProcess) -> None:
        assert "did you mean 'flambeau train'?" in flambeau("tarin", "tiny", expect=2).err
        assert "the commands are" in flambeau("xyzzy", expect=2).err

    @pytest.mark.parametrize(
        "arguments", [("train",), ("train", "tiny", "--no-such-option"), ("evaluate", "run", "--split", "x")]
    )
    def test_wrong_arguments_are_status_2_with_the_usage(self, flambeau: InProcess, arguments: tuple[str, ...]) -> None:
        assert f"usage: flambeau {arguments[0]}" in flambeau(*arguments, expect=2).err

    def test_an_unknown_configuration_is_answered_with_the_nearest(self, flambeau: InProcess) -> None:
        answer = flambeau("train", "tny", expect=2)
        assert "tny" in answer.err
        assert "tiny" in answer.err

    def test_four_typos_are_four_errors_with_four_right_names(self, flambeau: InProcess) -> None:
        (flambeau.project.root / "configs" / "typos.yaml").write_text(TYPOS)
        answer = flambeau("train", "typos", expect=2)
        assert answer.err.startswith("error: 4 problems in the configuration:")
        for line, wrong, right in (
            (1, "sede", "seed"),
            (3, "model.hiden_size", "hidden_size"),
            (5, "optimizer.weigth_decay", "weight_decay"),
            (6, "trainer.erly_stopping", "early_stopping"),
        ):
            (told,) = [told for told in answer.err.splitlines() if f"typos.yaml:{line}: {wrong}:" in told]
            assert f"did you mean '{right}'?" in told
        assert not (flambeau.project.root / "runs").exists()

    def test_a_device_that_is_not_there_is_refused_before_any_folder_is_made(self, flambeau: InProcess) -> None:
        for device, message in (("cuda:7", "this machine has"), ("gpu", "is not a device")):
            assert message in flambeau("train", "tiny", "-d", device, expect=2).err
        assert not (flambeau.project.root / "runs").exists()

    def test_settings_that_only_the_engine_can_judge_are_refused_before_any_folder_is_made(
        self, flambeau: InProcess
    ) -> None:
        for setting, message in (
            ("trainer.monitor=val/acuracy", "did you mean 'val/accuracy'?"),
            ("trainer.freeze=[bdy]", "matches no module"),
            ("optimizer.groups=[{pattern: bdy.*, lr: 0.1}]", "body"),
            ("optimizer.lr=-1", "learning rate"),
        ):
            answer = flambeau("train", "tiny", setting, expect=2)
            assert message in answer.err
            assert "Traceback" not in answer.err
        assert not (flambeau.project.root / "runs").exists()

    def test_a_broken_yaml_file_is_told_with_its_line(self, flambeau: InProcess) -> None:
        (flambeau.project.root / "configs" / "broken.yaml").write_text("seed: 1\ndata: {name: points\n")
        assert "broken.yaml:" in flambeau("train", "broken", expect=2).err


class TestTheUsersOwnErrors:
    """An exception of the user's code is shown as Python shows it: with its own traceback, status 1."""

    def project(self, tmp_path: Path, parts: str) -> Project:
        return Project.write(tmp_path / "broken", parts=parts)

    def test_an_exception_in_a_model_keeps_its_traceback(self, tmp_path: Path) -> None:
        project = self.project(
            tmp_path,
            '''
@register.model("faulty")
class Faulty(nn.Module):
    """Fails in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs):
        return self.layer(inputs)[:, undefined_name]
''',
        )
        done = project.run("train", "tiny", "model={name: faulty}", "--run-dir", "run", expect=1)
        assert "Traceback (most recent call last)" in done.stderr
        assert "NameError: name 'undefined_name' is not defined" in done.stderr
        assert f"{project.module}.py" in done.stderr
        assert "During handling of" not in done.stderr
        status = json.loads((project.root / "run/status.json").read_text())
        assert status["state"] == "failed"
        assert status["error"] == "NameError: name 'undefined_name' is not defined"
        assert "NameError" in (project.root / "run/log.txt").read_text()

    def test_an_exception_while_the_file_is_imported_keeps_its_traceback(self, tmp_path: Path) -> None:
        project = self.project(tmp_path, "\nimport no_such_module_of_mine\n")
        done = project.run("train", "tiny", expect=1)
        assert "ModuleNotFoundError: No module named 'no_such_module_of_mine'" in done.stderr
        assert f"{project.module}.py" in done.stderr
        assert not (project.root / "runs").exists()


class TestImports:
    def loaded(self, project: Project, *arguments: str) -> tuple[int, set[str]]:
        """Exit status of a command, and what it had imported at its end."""
        code = (
            "import sys, json\nfrom flambeau.cli import main\n"
            f"status = main({list(arguments)!r})\n"
            "print('\\n' + json.dumps([status, sorted(name.partition('.')[0] for name in sys.modules)]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=project.root,
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        status, modules = json.loads(done.stdout.splitlines()[-1])
        return status, set(modules)

    @pytest.mark.parametrize(
        ("arguments", "status"),
        [
            (("--help",), 0),
            (("train", "--help"), 0),
            (("train", "tiny", "optimizer.weigth_decay=0.1"), 2),
            (("train", "nowhere"), 2),
            (("resume", "nowhere"), 2),
            (("evaluate", "nowhere"), 2),
            (("config", "tiny"), 0),
            (("list", "models"), 0),
            (("runs",), 0),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_what_needs_no_torch_imports_none(self, project: Project, arguments: tuple[str, ...], status: int) -> None:
        """A wrong configuration is told in a tenth of a second, not after torch's import."""
        done, modules = self.loaded(project, *arguments)
        assert done == status
        assert not modules & {"torch", "numpy", "rich", "tensorboard", "sklearn", "safetensors"}

    def test_the_check_can_fail(self, project: Project) -> None:
        _, modules = self.loaded(project, "train", "tiny", "trainer.epochs=0")
        assert "torch" in modules


def test_a_reader_that_leaves_early_is_no_failure_of_ours(project: Project) -> None:
    """`flambeau list | head -1`"""
    done = subprocess.run(
        f"{sys.executable} -m flambeau list | head -1",
        shell=True,
        cwd=project.root,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
