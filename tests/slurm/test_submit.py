"""`flambeau submit` up to the moment at which Slurm has the job: what is checked, written and handed over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.projects import InProcess, Project, environment

from flambeau.config import load_config

RECORDER = """\
#!{python}
import json, os, sys
from pathlib import Path
script = Path(sys.argv[-1])
record = {{"arguments": sys.argv[1:], "environment": dict(os.environ), "script": script.read_text()}}
Path({record!r}).write_text(json.dumps(record))
print(os.environ.get("REFUSE", ""), file=sys.stderr)
print("17;cluster")
sys.exit(1 if "REFUSE" in os.environ else 0)
"""


class Sbatch:
    """A command in Slurm's place that keeps what it was called with."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.record = folder / "record.json"
        command = folder / "bin" / "sbatch"
        command.parent.mkdir()
        command.write_text(RECORDER.format(python=sys.executable, record=str(self.record)))
        command.chmod(0o755)
        monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)

    @property
    def called(self) -> bool:
        return self.record.exists()

    @property
    def script(self) -> str:
        return str(json.loads(self.record.read_text())["script"])

    @property
    def environment(self) -> dict[str, str]:
        return dict(json.loads(self.record.read_text())["environment"])


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sbatch:
    return Sbatch(tmp_path, monkeypatch)


def options_of(script: str) -> dict[str, str]:
    """The `#SBATCH` lines of a script."""
    lines = [line.removeprefix("#SBATCH --") for line in script.split("\n") if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_a_job_says_its_number_its_run_and_what_to_do_next(flambeau: InProcess, sbatch: Sbatch) -> None:
    """All paths as a person types them here."""
    lines = flambeau("submit", "tiny", "--run-dir", "runs/a").out.split("\n")
    assert lines[:2] == ["job    17 (tiny)", "run    runs/a"]
    assert [line.split()[1:] for line in lines[2:5]] == [
        ["squeue", "-j", "17"],
        ["tail", "-F", "runs/a/job/log.txt"],
        ["scancel", "17"],
    ]
    assert json.loads(sbatch.record.read_text())["arguments"][0] == "--parsable"
    assert (flambeau.project.root / "runs/a/job/job.sh").read_text() == sbatch.script


def test_what_the_options_say_stands_in_the_script(flambeau: InProcess, sbatch: Sbatch) -> None:
    """CPUs are those of all processes of a node, and each process has its data workers."""
    flambeau(
        *("submit", "tiny", "data.workers=3", "--nodes", "2", "--gpus-per-node", "4", "--time", "1-4:00:00"),
        *("--mem", "64G", "--partition", "gpu", "--account", "lab", "--signal-seconds", "300"),
        *("--sbatch-arg=--qos=high", "--sbatch-arg=--constraint=a100|h100", "--sbatch-arg=--exclusive"),
    )
    options = options_of(sbatch.script)
    assert options.pop("output").strip('"').endswith("/job/log.txt")
    assert options == {
        "job-name": "tiny",
        "nodes": "2",
        "ntasks-per-node": "1",
        "gpus-per-node": "4",
        "cpus-per-task": "16",
        "time": "1-4:00:00",
        "mem": "64G",
        "partition": "gpu",
        "account": "lab",
        "signal": "B:USR1@300",
        "open-mode": "append",
        "requeue": "",
        "qos": "high",
        "constraint": "a100|h100",
        "exclusive": "",
    }
    assert " -d 0,1,2,3 " in sbatch.script


def test_no_requeues_are_no_requeues(flambeau: InProcess, sbatch: Sbatch) -> None:
    """Not by Slurm either."""
    flambeau("submit", "tiny", "--max-requeues", "0")
    options = options_of(sbatch.script)
    assert "no-requeue" in options
    assert "requeue" not in options


def test_a_dry_run_shows_the_script_and_leaves_nothing(
    flambeau: InProcess, sbatch: Sbatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there is no Slurm; the script is one that bash can read."""
    before = sorted(flambeau.project.root.rglob("*"))
    text = flambeau("submit", "tiny", "--nodes", "2", "--dry-run").out
    assert not sbatch.called
    assert sorted(path for path in flambeau.project.root.rglob("*") if "__pycache__" not in path.parts) == before
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    monkeypatch.setenv("PATH", "/nowhere")
    assert flambeau("submit", "tiny", "--nodes", "2", "--run-dir", "r", "--dry-run").out.startswith(
        "#!/usr/bin/env bash"
    )


def test_without_slurm_it_says_so_and_leaves_nothing(flambeau: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what to do."""
    monkeypatch.setenv("PATH", "/nowhere")
    answer = flambeau("submit", "tiny", "--run-dir", "run", expect=2)
    assert "sbatch" in answer.err
    assert "--dry-run" in answer.err
    assert not (flambeau.project.root / "run").exists()


def test_faults_of_the_configuration_are_all_said_before_anything_is_made(flambeau: InProcess, sbatch: Sbatch) -> None:
    """Not hours later, when the job begins."""
    answer = flambeau("submit", "tiny", "optimizer.lrr=1", "trainer.epochs=many", "--run-dir", "run", expect=2)
    assert "2 problems" in answer.err
    assert not sbatch.called
    assert not (flambeau.project.root / "run").exists()


def test_neither_checking_nor_submitting_imports_torch(project: Project) -> None:
    """A login node answers at once."""
    program = (
        "import sys; from flambeau.cli import main; status = main(['submit', 'tiny', '--dry-run']);"
        "sys.exit(status or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=project.root, env=environment(), check=True)


HOSTILE = [
    ("--name", "a b"),
    ("--name", "a;touch pwned"),
    ("--name", "a\n#SBATCH --wrap=x"),
    ("--name", "-x"),
    ("--name", ""),
    ("--partition", "a b"),
    ("--partition", "$(touch pwned)"),
    ("--account", "x --uid=0"),
    ("--mem", "64G;"),
    ("--mem", "6 4"),
    ("--mem", "٣G"),
    ("--time", "1:2:3:4"),
    ("--time", "5\n"),
    ("--time", "soon"),
    ("--array", "0-4$(x)"),
    ("--array", "%3"),
    ("--sbatch-arg", "--qos=a b"),
    ("--sbatch-arg", '--comment="x"'),
    ("--sbatch-arg", "--qos=x\n--uid=0"),
    ("--sbatch-arg", "--qos=#x"),
    ("--sbatch-arg", "qos=x"),
    ("--sbatch-arg", "-q"),
    ("--sbatch-arg", "--output=/etc/passwd"),
    ("--sbatch-arg", "--nodes=3"),
    ("--nodes", "0"),
    ("--gpus-per-node", "-1"),
    ("--cpus-per-task", "0"),
    ("--processes-per-node", "0"),
    ("--max-requeues", "-1"),
    ("--signal-seconds", "0"),
    ("--run-dir", "run\n#SBATCH --wrap=x"),
    ("--run-dir", "back\\slash"),
    ("--env-setup", "nowhere.sh"),
]


@pytest.mark.parametrize(("option", "value"), HOSTILE, ids=[f"{option}={value!r}" for option, value in HOSTILE])
def test_a_value_that_cannot_be_meant_is_refused_by_name(
    flambeau: InProcess, sbatch: Sbatch, option: str, value: str
) -> None:
    """No value becomes a line of the script, another option, or a command."""
    answer = flambeau("submit", "tiny", f"{option}={value}", expect=2)
    assert option in answer.err
    assert not sbatch.called
    assert not (flambeau.project.root / "runs").exists()
    assert not (flambeau.project.root / "pwned").exists()


def test_an_option_that_submit_sets_is_refused_with_the_one_that_sets_it(flambeau: InProcess, sbatch: Sbatch) -> None:
    assert "use --signal-seconds" in flambeau("submit", "tiny", "--sbatch-arg=--signal=USR2@5", expect=2).err


def test_a_job_with_no_time_before_its_signal_is_refused(flambeau: InProcess, sbatch: Sbatch) -> None:
    """Slurm would send the signal at once, and the job would be requeued for ever."""
    assert "trains for 0 s" in flambeau("submit", "tiny", "--time", "2", expect=2).err
    flambeau("submit", "tiny", "--time", "2", "--signal-seconds", "30")


def test_options_of_other_schedulers_are_not_silently_without_effect(flambeau: InProcess, sbatch: Sbatch) -> None:
    assert "--image: means nothing to Slurm" in flambeau("submit", "tiny", "--image", "x", expect=2).err
    answer = flambeau("submit", "tiny", "--emit", "kubeflow", "--partition", "x", "--array", "0-1", expect=2)
    assert "--partition, --array: means nothing to Kubeflow" in answer.err


VALUES = ["$(touch pwned)", "`touch pwned`", "'; touch pwned; '", 'a"b', "a\nb", "#x", "%j", "\\", "é \u2028 x", "!x"]


@pytest.mark.parametrize("value", VALUES)
def test_the_value_of_a_setting_reaches_the_training_as_it_is(flambeau: InProcess, sbatch: Sbatch, value: str) -> None:
    """It lies in a file of YAML; the script does not hold it."""
    plain = flambeau("submit", "tiny", "--run-dir", "run", "--dry-run").out
    flambeau("submit", "tiny", f"callbacks.note.text={json.dumps(value)}", "--run-dir", "run")
    assert sbatch.script == plain
    config = load_config("run/job/tiny.yaml")
    assert config.name == "tiny"
    assert config.values["callbacks"]["note"]["text"] == value


def test_the_job_trains_what_was_checked(flambeau: InProcess, sbatch: Sbatch) -> None:
    """Its file may be changed while the job waits."""
    flambeau("submit", "tiny", "optimizer.lr=0.25", "--run-dir", "run")
    (flambeau.project.root / "configs/tiny.yaml").write_text("seed: 99\n")
    values = load_config("run/job/tiny.yaml").values
    assert (values["seed"], values["optimizer"]["lr"]) == (3, 0.25)


def test_a_secret_goes_through_the_environment_and_into_no_file(
    flambeau: InProcess, sbatch: Sbatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "FLAMBEAU__CALLBACKS__NOTE__API_KEY"
    monkeypatch.setenv(name, "hunter2")
    flambeau("submit", "tiny", "--run-dir", "run")
    assert not any(
        "hunter2" in path.read_text() for path in (flambeau.project.root / "run").rglob("*") if path.is_file()
    )
    assert sbatch.environment[name] == "hunter2"
    assert load_config("run/job/tiny.yaml").values["callbacks"]["note"]["api_key"] == "hunter2"


def test_a_job_that_is_refused_leaves_nothing(
    flambeau: InProcess, sbatch: Sbatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And Slurm's reason is told."""
    monkeypatch.setenv("REFUSE", "sbatch: error: invalid partition specified: x")
    answer = flambeau("submit", "tiny", "--partition", "x", expect=1)
    assert "invalid partition specified: x" in answer.err
    assert sorted(path.name for path in (flambeau.project.root / "runs").rglob("*")) == [".gitignore", "tiny"]


def test_a_folder_takes_one_job(flambeau: InProcess, sbatch: Sbatch) -> None:
    flambeau("submit", "tiny", "--run-dir", "run")
    sbatch.record.unlink()
    assert "is not empty" in flambeau("submit", "tiny", "--run-dir", "run", expect=2).err
    assert not sbatch.called


def test_a_job_submitted_within_a_job_does_not_inherit_its_options(
    flambeau: InProcess, sbatch: Sbatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interactive job's memory for each CPU contradicts a memory for each node, and Slurm would refuse."""
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    monkeypatch.setenv("SBATCH_PARTITION", "mine")
    flambeau("submit", "tiny")
    kept = {key for key in sbatch.environment if key.startswith(("SLURM_", "SBATCH_"))}
    assert kept == {"SLURM_CONF", "SBATCH_PARTITION"}


def test_an_array_has_a_run_and_a_log_for_each_task(flambeau: InProcess, sbatch: Sbatch) -> None:
    """The number of the task, known only then, can stand in the configuration."""
    answer = flambeau(
        "submit", "tiny", "seed=${env:SLURM_ARRAY_TASK_ID}", "--array", "3-5%2", "--run-dir", "sweep", expect=0
    )
    assert "run    sweep/<task>" in answer.out
    options = options_of(sbatch.script)
    assert options["array"] == "3-5%2"
    assert options["output"].endswith('/sweep/job/log-%a.txt"')
    assert f"\nrun={flambeau.project.root}/sweep/$SLURM_ARRAY_TASK_ID\n" in sbatch.script
    config = yaml.safe_load((flambeau.project.root / "sweep/job/tiny.yaml").read_text())
    assert config["seed"] == "${env:SLURM_ARRAY_TASK_ID}"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("2:30", 150), ("1:00:00", 3600), ("2-12", 216000), ("1-0:30", 88200), ("1-1:1:1", 90061)],
)
def test_a_time_means_what_it_means_to_slurm(text: str, seconds: int) -> None:
    """The first number is minutes, hours or days, as its manual has it."""
    from flambeau.launch.request import Request

    assert Request(name="x", time=text).seconds == seconds
