"""The tasks of other schedulers are what those schedulers read."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.projects import InProcess

LARGE = ["--nodes", "2", "--gpus-per-node", "4", "--cpus-per-task", "8", "--mem", "64G"]
SMALL = ["--processes-per-node", "2"]
KUBEFLOW = ["--emit", "kubeflow", "--image", "lab/project:1"]
SKYPILOT = ["--emit", "skypilot"]

CASES = {
    "kubeflow, large": [*KUBEFLOW, *LARGE, "--time", "4:00:00", "--storage", "runs-claim"],
    "kubeflow, small": [*KUBEFLOW, *SMALL, "--run-dir", "/shared/run", "--runtime", "mine"],
    "skypilot, large": [*SKYPILOT, *LARGE, "--gpu-type", "H100", "--storage", "s3://bucket/runs", "--image", "a/b:1"],
    "skypilot, small": [*SKYPILOT, *SMALL, "--run-dir", "/shared/run", "--setup", "pip install flambeau"],
}


def emitted(flambeau: InProcess, case: str, *overrides: str) -> dict[str, Any]:
    task = yaml.safe_load(flambeau("submit", "tiny", *overrides, *CASES[case]).out)
    assert isinstance(task, dict)
    return task


def test_a_train_job_asks_for_what_was_said(flambeau: InProcess) -> None:
    """And goes on by itself where the run stands when a pod is made anew."""
    spec = emitted(flambeau, "kubeflow, large", "optimizer.lr=0.5")["spec"]
    assert spec["activeDeadlineSeconds"] == 4 * 3600
    trainer = spec["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)
    assert trainer["resourcesPerNode"]["limits"] == {"cpu": "32", "memory": "65536Mi", "nvidia.com/gpu": "4"}
    assert trainer["command"][:6] == ["torchrun", "-m", "flambeau", "train", "tiny", "optimizer.lr=0.5"]
    run = trainer["command"][trainer["command"].index("--run-dir") + 1]
    assert run.startswith("/runs/tiny/2")
    assert trainer["command"][-1] == "--resume"


def test_a_train_job_on_cpus_trains_on_cpus(flambeau: InProcess) -> None:
    trainer = emitted(flambeau, "kubeflow, small")["spec"]["trainer"]
    assert trainer["command"][-2:] == ["-d", "cpu"]
    assert trainer["resourcesPerNode"]["limits"] == {"cpu": "2"}


def test_a_sky_task_asks_for_what_was_said(flambeau: InProcess) -> None:
    task = emitted(flambeau, "skypilot, large")
    assert task["num_nodes"] == 2
    assert task["resources"]["accelerators"] == {"H100": 4}
    assert task["resources"]["memory"] == "64+"
    assert task["resources"]["job_recovery"] == {"recover_on_exit_codes": [75]}
    assert "-d 0,1,2,3 --nodes" in task["run"]


@pytest.mark.parametrize("value", ["$(touch pwned)", "a'; touch pwned; '", 'x"y', "a\nb"])
def test_the_shell_command_of_a_sky_task_quotes_its_words(flambeau: InProcess, tmp_path: Path, value: str) -> None:
    """What the shell makes of it is one argument, as it was typed."""
    override = f"callbacks.note.text={json.dumps(value)}"
    task = emitted(flambeau, "skypilot, large", override)
    script = f"python() {{ printf '%s\\0' \"$@\"; }}\nSKYPILOT_NODE_IPS=10.0.0.1\n{task['run']}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split("\0")[4] == override
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([*KUBEFLOW], ["--storage", "--run-dir"]),
        (["--emit", "kubeflow", "--storage", "x"], ["--image"]),
        ([*SKYPILOT, "--gpus-per-node", "1", "--storage", "s3://x"], ["--gpu-type"]),
        ([*SKYPILOT, "--storage", "bucket"], ["s3://"]),
        ([*SKYPILOT, "--storage", "s3://x", "--time", "60"], ["callbacks.time_limit"]),
        ([*KUBEFLOW, "--storage", "x", "--name", "Tiny_1"], ["--name"]),
        ([*KUBEFLOW, "--storage", "X y"], ["--storage"]),
        (["--emit", "kubeflow", "--image", "a b", "--storage", "x"], ["--image"]),
    ],
)
def test_what_is_missing_or_wrong_is_said_before_a_scheduler_does(
    flambeau: InProcess, options: list[str], words: list[str]
) -> None:
    answer = flambeau("submit", "tiny", *options, expect=2)
    assert not answer.out
    for word in words:
        assert word in answer.err


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("kubeflow")])
def test_kubeflows_own_classes_read_the_task_in_full(flambeau: InProcess, case: str) -> None:
    """They are made from its API; what they do not know or mistype does not come back."""
    pytest.importorskip("kubeflow_trainer_api", reason="pip install kubeflow-trainer-api")
    from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

    task = emitted(flambeau, case)
    job = TrainerV1alpha1TrainJob.from_dict(task)
    assert job is not None
    assert job.to_dict() == task


@pytest.mark.skipif(find_spec("sky") is None, reason="pip install skypilot")
@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("skypilot")])
def test_skypilot_itself_reads_the_task(flambeau: InProcess, case: str, tmp_path: Path) -> None:
    """In a process and a home of its own: it writes there when it is imported."""
    file = tmp_path / "task.yaml"
    file.write_text(yaml.safe_dump(emitted(flambeau, case)))
    program = f"import sky; task = sky.Task.from_yaml({str(file)!r}); print(task.num_nodes, task.resources)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert ("H100" in done.stdout) == (case == "skypilot, large")
