"""Devices, processes and machines on the command line: what contradicts itself is refused before anything starts."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest
from support.projects import InProcess, Project, environment

from flambeau.errors import UsageError
from flambeau.launch import Plan, add_device, add_machines, add_processes, plan_of


def plan(*arguments: str) -> Plan:
    parser = argparse.ArgumentParser()
    for add in (add_device, add_processes, add_machines):
        add(parser)
    return plan_of(parser.parse_args(arguments))


def test_one_device_needs_no_launcher() -> None:
    for device in ("auto", "cpu", "0", "cuda:1"):
        assert plan("-d", device) == Plan(device=device)
        assert not plan("-d", device).needs_launcher


def test_one_process_for_each_device() -> None:
    assert plan("-d", "0,2,cuda:3").processes == 3
    assert plan("-d", "0,2", "--processes", "2").processes == 2
    assert plan("-d", "cpu", "--processes", "4").processes == 4
    assert plan("-d", "0,1").needs_launcher


def test_machines() -> None:
    fixed = plan("--nodes", "2", "--node-rank", "1", "--master", "10.0.0.1:29500")
    assert (fixed.nodes, fixed.node_rank, fixed.master) == ((2, 2), 1, ("10.0.0.1", 29500))
    assert fixed.needs_launcher and not fixed.is_elastic and fixed.max_restarts == 0
    elastic = plan("--nodes", "1:4", "--master", "[fe80::1]:29500")
    assert elastic.is_elastic and elastic.master == ("fe80::1", 29500) and elastic.max_restarts == 3
    assert plan("--nodes", "1:4", "--master", "h:1", "--max-restarts", "0").max_restarts == 0
    assert plan("--max-restarts", "2").needs_launcher


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("-d 0,0", "names a device twice"),
        ("-d 0,cuda:0", "names a device twice"),
        ("-d cpu,cpu", "'cpu' is no CUDA device"),
        ("-d 0,", "'' is no CUDA device"),
        ("-d 0,1 --processes 3", "names 2 devices, and --processes asks for 3"),
        ("-d 0 --processes 2", "is one device, and 2 processes"),
        ("--processes 0", "at least one is needed"),
        ("--nodes 2", "--master ADDR:PORT"),
        ("--nodes 2 --master h:1", "each machine needs its number"),
        ("--nodes 2 --master h:1 --node-rank 2", "numbered from 0 to 1"),
        ("--nodes 2 --master h --node-rank 0", "ADDR:PORT is needed"),
        ("--nodes 2 --master h:99999 --node-rank 0", "ADDR:PORT is needed"),
        ("--nodes 3:2 --master h:1", "MIN no larger than MAX"),
        ("--nodes 0", "at least one machine"),
        ("--nodes two", "a number or MIN:MAX"),
        ("--node-rank 1", "are for several machines"),
        ("--max-restarts -1", "a number from 0 on"),
    ],
)
def test_what_contradicts_itself_is_refused(arguments: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(*arguments.split(" "))
    assert said in str(caught.value)


def test_under_a_launcher_the_counts_have_to_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert not plan("-d", "cpu", "--processes", "2").needs_launcher
    assert not plan("--nodes", "2").needs_launcher  # the launcher knows the rest
    with pytest.raises(UsageError, match="the launcher started 2"):
        plan("-d", "0,1,2")


@pytest.fixture
def flambeau(project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    return InProcess(project, monkeypatch, capsys)


@pytest.mark.parametrize("command", [("train", "tiny"), ("resume", "run"), ("evaluate", "run")])
def test_devices_that_are_not_there_end_with_status_2(flambeau: InProcess, command: tuple[str, str]) -> None:
    flambeau("train", "tiny", "-d", "cpu", "trainer.epochs=1", "--run-dir", "run")
    answer = flambeau(*command, "-d", "98,99", expect=2)
    assert "device cuda:98 was asked for, and this machine has" in answer.err


def test_predict_uses_one_device(flambeau: InProcess) -> None:
    answer = flambeau("predict", "run", "--input", "val", "--output", "o.csv", "-d", "0,1", expect=2)
    assert "predict uses one device" in answer.err and "use -d 0" in answer.err


def test_resume_of_train_needs_a_folder(flambeau: InProcess) -> None:
    assert "--run-dir DIR" in flambeau("train", "tiny", "--resume", expect=2).err


def test_a_wrong_configuration_starts_nothing_and_needs_no_torch(project: Project) -> None:
    """Neither torch nor a process for each device is worth starting for a misspelt key."""
    program = (
        "import sys; from flambeau.cli import main;"
        "status = main(['train', 'tiny', 'trainer.epoch=1', '-d', 'cpu', '--processes', '2']);"
        "sys.exit(3 if 'torch' in sys.modules else status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=project.root, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("did you mean") == 1, done.stderr
