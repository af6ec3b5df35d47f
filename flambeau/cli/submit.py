"""Train a configuration as a job of Slurm: saved before the time limit, requeued, gone on with in the same folder.

  flambeau submit lenet --nodes 2 --gpus-per-node 4 --time 4:00:00
  flambeau submit lenet optimizer.lr=3e-4 --nodes 2 --processes-per-node 8 --partition cpu
  flambeau submit lenet --gpus-per-node 1 --time 1:00:00 --dry-run
  flambeau submit lenet --nodes 2 --gpus-per-node 8 --emit kubeflow --image me/lenet:1 --storage runs > task.yaml

The configuration is checked now, and the job trains what was checked, whatever becomes of its file meanwhile.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flambeau.cli.settings import add_bindings, overrides_of
from flambeau.console import say
from flambeau.errors import EXIT_DONE, UsageError
from flambeau.launch.request import Request, matching
from flambeau.launch.slurm import SlurmJob, require_sbatch
from flambeau.run_folder import RunFolder
from flambeau.run_folder.folder import new_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flambeau.config import Config

HELP = "train a configuration as a job of Slurm, or write the task for other schedulers"

_SLURM_ONLY = ("partition", "account", "array", "env_setup", "max_requeues", "sbatch_arg", "dry_run")
_EMIT_ONLY = ("image", "storage", "gpu_type", "runtime", "setup")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("config", metavar="CONFIG", help="a name in configs/, or a path to a YAML file; A+B for both")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings to change: optimizer.lr=3e-4")
    add_bindings(parser)
    parser.add_argument("--run-dir", type=Path, help="the run's folder; default: runs/<config>/<time>-<id>")
    parser.add_argument("--name", help="the job's name; default: the configuration's")
    job = parser.add_argument_group("what the job asks for")
    job.add_argument("--nodes", type=int, default=1, help="machines; default: 1")
    job.add_argument("--gpus-per-node", type=int, default=0, metavar="N", help="GPUs of each, a process for each")
    job.add_argument("--processes-per-node", type=int, default=1, metavar="N", help="processes of each, without GPUs")
    job.add_argument(
        "--cpus-per-task", type=int, metavar="N", help="CPUs of each process; default: one, and one for a data worker"
    )
    job.add_argument("--mem", metavar="SIZE", help="memory of each node: 64G")
    job.add_argument("--time", help="the limit of one job: 4:00:00, 2-12; the run may take many")
    job.add_argument(
        "--signal-seconds", type=int, default=120, metavar="S", help="time for saving before that; default: 120"
    )
    slurm = parser.add_argument_group("Slurm")
    slurm.add_argument("--partition", metavar="NAME")
    slurm.add_argument("--account", metavar="NAME")
    slurm.add_argument("--array", metavar="TASKS", help="a run for each number, which ${env:SLURM_ARRAY_TASK_ID} is")
    slurm.add_argument("--max-requeues", type=int, metavar="N", help="starts after the first; default: 100")
    slurm.add_argument(
        "--env-setup", type=Path, metavar="FILE", help="shell commands that come first; python is then theirs"
    )
    slurm.add_argument(
        "--sbatch-arg", action="append", metavar="OPTION", help="more for sbatch: --sbatch-arg=--qos=high"
    )
    slurm.add_argument("--dry-run", action="store_true", default=None, help="show the script, and do nothing")
    other = parser.add_argument_group("other schedulers")
    other.add_argument("--emit", choices=("kubeflow", "skypilot"), help="print the task as YAML, and submit nothing")
    other.add_argument("--image", help="the container's image, with the project and Flambeau in it")
    other.add_argument("--storage", help="what is mounted at /runs: a PersistentVolumeClaim, or s3://bucket/folder")
    other.add_argument("--gpu-type", metavar="NAME", help="SkyPilot: H100")
    other.add_argument("--setup", metavar="COMMANDS", help="SkyPilot: what is done first; default: pip install -e .")
    other.add_argument(
        "--runtime", metavar="NAME", help="Kubeflow: the ClusterTrainingRuntime; default: torch-distributed"
    )


def run(args: argparse.Namespace) -> int:
    """Check, write the script and submit it."""
    foreign = _SLURM_ONLY if args.emit else _EMIT_ONLY
    given = [f"--{name.replace('_', '-')}" for name in foreign if getattr(args, name) is not None]
    if given:
        target = {"kubeflow": "Kubeflow", "skypilot": "SkyPilot", None: "Slurm"}[args.emit]
        raise UsageError(f"{', '.join(given)}: means nothing to {target}")
    config = _load(args)
    request = Request(
        name=args.name if args.name is not None else _job_name(config.name),
        nodes=args.nodes,
        gpus=args.gpus_per_node,
        processes=args.processes_per_node,
        cpus=args.cpus_per_task
        if args.cpus_per_task is not None
        else 1 + config.values.get("data", {}).get("workers", 0),
        memory=args.mem,
        time=args.time,
    )
    if args.emit:
        return _emit(args, config, request)
    return _submit(args, config, request)


def _job_name(config_name: str) -> str:
    """A configuration's file may be called by names that a job may not."""
    return re.sub(r"[^A-Za-z0-9.+-]", "-", config_name).strip("-._+")[:63] or "flambeau"


def _load(args: argparse.Namespace) -> Config:
    from flambeau.config import load_config

    if args.array is not None:
        # What a task of the array finds there; for the check, any of its numbers will do.
        first = re.match(r"\d+", args.array)
        os.environ.setdefault("SLURM_ARRAY_TASK_ID", first[0] if first else "0")
    return load_config(args.config, overrides_of(args))


def _submit(args: argparse.Namespace, config: Config, request: Request) -> int:
    if args.env_setup is not None and not args.env_setup.is_file():
        raise UsageError(f"--env-setup {args.env_setup} is no file")
    runs_dir = config.project.root / config.values.get("runs_dir", "runs")
    # What is wrong with the options shows before a folder is made.
    planned = _job(args, config, request, RunFolder(args.run_dir or new_path(runs_dir, config.name, config.debug)))
    if args.dry_run:
        print(planned.text(), end="")
        return EXIT_DONE
    require_sbatch()
    folder = RunFolder.reserve(runs_dir, config.name, path=args.run_dir, debug=config.debug)
    job = _job(args, config, request, folder)
    with _unless_refused(folder, keep=args.run_dir is not None):
        job.config.write_text(config.to_yaml(), encoding="utf-8")
        job.script.write_text(job.text(), encoding="utf-8")
        job.script.chmod(0o755)
        number = job.submit()
    shown = Path(os.path.relpath(folder.path)) if folder.path.is_relative_to(Path.cwd()) else folder.path
    log = shown / "job" / job.log.name
    say(f"job    {number} ({request.name})")
    say(f"run    {shown}" + (f"/<task>, one for each of {args.array}" if args.array else ""))
    say(f"  state  squeue -j {number}")
    say(f"  log    tail -F {shlex.quote(str(log)).replace('%a', '*')}")
    say(f"  stop   scancel {number}")
    return EXIT_DONE


def _job(args: argparse.Namespace, config: Config, request: Request, folder: RunFolder) -> SlurmJob:
    path = folder.path.absolute()
    jobs = path / folder.job_folder.name
    return SlurmJob(
        request=request,
        config=jobs / f"{config.name}.yaml",
        run=path,
        folder=jobs,
        directory=Path.cwd(),
        python="python" if args.env_setup else sys.executable,
        setup=args.env_setup and args.env_setup.absolute(),
        partition=args.partition,
        account=args.account,
        signal_seconds=args.signal_seconds,
        max_requeues=100 if args.max_requeues is None else args.max_requeues,
        array=args.array,
        options=args.sbatch_arg or (),
    )


@contextmanager
def _unless_refused(folder: RunFolder, *, keep: bool) -> Iterator[None]:
    """Take what was made for a job away again if it does not come to be; with `keep`, not the run's folder itself."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder.job_folder)
        if not keep:
            folder.path.rmdir()
        raise


def _emit(args: argparse.Namespace, config: Config, request: Request) -> int:
    from flambeau.config.writing import write
    from flambeau.launch.task_files import MOUNT, kubeflow, skypilot

    if args.storage is None and args.run_dir is None:
        raise UsageError(
            "the run must be kept where it outlives the machines",
            remedy="--storage, mounted at /runs: the name of a PersistentVolumeClaim (Kubeflow), s3://bucket/folder "
            "(SkyPilot); or --run-dir, a folder that the machines have",
        )
    run = args.run_dir or new_path(Path(MOUNT), config.name, config.debug)
    training = ["train", args.config, *args.overrides, "--run-dir", str(run), "--resume"]
    if args.image is not None:
        matching("--image", args.image, r"[\w][\w.:/@+-]*", "the name of an image: registry/project:version")
    if args.emit == "kubeflow":
        if args.image is None:
            raise UsageError("Kubeflow runs containers", remedy="--image: one with the project and Flambeau in it")
        task = kubeflow(
            request,
            training,
            image=args.image,
            claim=args.storage,
            runtime=args.runtime or "torch-distributed",
            grace=args.signal_seconds,
        )
    else:
        task = skypilot(
            request,
            training,
            image=args.image,
            bucket=args.storage,
            gpu=args.gpu_type,
            setup=args.setup or "pip install -e .",
        )
    print(write(task), end="")
    return EXIT_DONE
