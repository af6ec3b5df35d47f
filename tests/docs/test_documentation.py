"""What the documentation shows is what happens, and what it names is there."""

from __future__ import annotations

import argparse
import importlib
import itertools
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from following import follow
from pages import GUIDES, PAGES, ROOT, anchors, blocks, commands, inline_code, links, page_name, prose, rows_of_habits

from flambeau.cli import COMMANDS
from flambeau.config.project import SHIPPED
from flambeau.config.slots import GENERAL, SLOTS

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _make_target_exists(command: str) -> bool:
    makefile = (ROOT / "Makefile").read_text()
    targets = [word for word in shlex.split(command, comments=True)[1:] if "=" not in word]
    return all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def _extras_exist(command: str) -> bool:
    named = re.findall(r"\[([\w,]+)\]", command)
    return {extra for names in named for extra in names.split(",")} <= set(
        PYPROJECT["project"]["optional-dependencies"]
    )


def _markers_exist(command: str) -> bool:
    declared = {text.split(":")[0] for text in PYPROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    options = shlex.split(command, comments=True)
    expressions = [after for word, after in itertools.pairwise(options) if word == "-m"]
    return {word for text in expressions for word in re.findall(r"\w+", text)} - {"and", "or", "not"} <= declared


def _module_exists(command: str) -> bool:
    module = shlex.split(command, comments=True)[2].replace(".", "/")
    return (ROOT / f"{module}.py").is_file() or (ROOT / module / "__main__.py").is_file()


def _is_the_makefiles_environment(command: str) -> bool:
    return "VENV ?= .venv\n" in (ROOT / "Makefile").read_text()


def _nothing_to_check(command: str) -> bool:
    return True


def _command_exists(command: str) -> bool:
    _check_command(command.removeprefix("flambeau "))
    return True


ELSEWHERE: dict[str, Callable[[str], bool]] = {
    r"make\b": _make_target_exists,  # makes an environment; .ci/run runs these on a clean checkout
    r"(python -m )?pip install\b": _extras_exist,  # needs the network
    r"pytest\b": _markers_exist,  # this is pytest
    r"\w*=?\w* ?python -m benchmarks\b": _module_exists,  # takes minutes
    r"git clone\b": _nothing_to_check,  # needs the network
    r"python3 -m venv \.venv$|\. \.venv/bin/activate\b": _is_the_makefiles_environment,  # the test has one already
    r"tensorboard\b": _nothing_to_check,  # a server that does not end
    r"flambeau submit (?!.*--(dry-run|emit)\b)": _command_exists,  # tests/slurm follows that page with a Slurm
    r"(squeue|scancel|sbatch|srun|cat runs/\S+/job/)\b": _nothing_to_check,  # the same
}
"""Commands that a test cannot run, and what is looked at in their place."""

TRAINING_PAGES = {
    "coming-from-other-templates", "large-models", "optimisation", "several-devices", "start-points", "tasks",
    "tasks-text", "when-something-dies",
}  # fmt: skip
"""Pages that train for tens of seconds, in several processes or many runs: followed with the slow suite."""

NOT_THERE_YET = re.compile(r"Not there yet:.*?\.(?=\s)", re.DOTALL)
"""The sentence that names commands to come."""


@pytest.fixture(scope="module")
def reader() -> Iterator[ProcessPoolExecutor]:
    """A fresh process for each page, forked from one that has imported torch: a start of its own would take seconds."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        yield pool


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page_name(page), marks=[pytest.mark.slow] if page.stem in TRAINING_PAGES else [])
        for page in GUIDES
    ],
)
def test_what_a_page_shows_is_what_happens(page: Path, tmp_path: Path, reader: ProcessPoolExecutor) -> None:
    """Its files, programs and commands, one after the other in an empty folder, do and say what stands there."""
    faults = reader.submit(follow, page, tmp_path, list(ELSEWHERE)).result()
    assert not faults, "\n\n".join(faults)


@pytest.mark.parametrize("page", GUIDES, ids=page_name)
def test_commands_that_are_not_run_here_name_what_exists(page: Path) -> None:
    """Targets of make, extras of pip, markers of pytest, modules of the benchmarks."""
    shown = [command.text for block in blocks(page) if block.language == "console" for command in commands(block)]
    for command in [*shown, *inline_code(page)]:
        for pattern, holds in ELSEWHERE.items():
            if re.match(pattern, command):
                assert holds(command), command


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_named_in_the_text_take_the_options_named(page: Path) -> None:
    """`flambeau runs --json` is a command, and has that option."""
    text = NOT_THERE_YET.sub("", prose(page))
    for code in re.findall(r"`flambeau ([^`]+)`", text):
        _check_command(code)
    for _, left, _ in rows_of_habits(page):  # of other programs
        text = text.replace(left, "")
    options = set().union(*map(_options, COMMANDS))
    assert set(re.findall(r"`(--[\w-]+)", text)) <= options


@pytest.mark.parametrize("page", GUIDES, ids=page_name)
def test_shell_scripts_are_valid_and_name_commands_that_exist(page: Path) -> None:
    """They are not run: they loop, or need a history of git."""
    for block in blocks(page):
        if block.language == "sh":
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
            for code in re.findall(r"\bflambeau ([^;\n]+)", block.text):
                _check_command(code)


def _check_command(code: str) -> None:
    """`flambeau CODE` is a command with such options."""
    words = code.split()
    if words[0].startswith("-"):
        return
    assert words[0] in COMMANDS, f"flambeau {code}"
    options = {word.split("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
    assert options <= _options(words[0]), f"flambeau {code}"


def _options(command: str) -> set[str]:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"flambeau.cli.{command.replace('-', '_')}").add_arguments(parser)
    return set(parser._option_string_actions)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page: Path) -> None:
    """To a file of the repository and a heading in it; other addresses are encrypted ones."""
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page_name(page)} leads to {target}"
        assert not anchor or anchor in anchors(file), f"{page_name(page)} leads to {target}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_files_named_in_the_text_exist(page: Path) -> None:
    """Paths that begin with a folder of the repository."""
    homes = ("flambeau", "docs", "tests", "benchmarks", ".ci")
    for code in inline_code(page):
        if re.fullmatch(rf"({'|'.join(map(re.escape, homes))})/[\w./-]*", code):
            assert (ROOT / code).exists(), f"{page_name(page)} names {code}"


@pytest.mark.parametrize("page", [*PAGES, *sorted(SHIPPED.glob("*.yaml"))], ids=page_name)
def test_no_page_holds_a_path_of_somebodys_machine(page: Path) -> None:
    """Examples are to work anywhere."""
    assert re.findall(r"(?<![\w.])/(?:work|root|opt|home|tmp|Users)/\S*", page.read_text()) == []


def test_the_page_on_configuration_names_every_section() -> None:
    """Its table is complete."""
    rows = [line for line in prose(ROOT / "docs" / "configuration.md").split("\n") if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == {*GENERAL, *SLOTS} - {"base"}


def test_the_changelog_has_a_place_for_what_is_not_released_yet() -> None:
    """Above all releases."""
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0].strip("[]") == "Unreleased"
