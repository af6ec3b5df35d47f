"""Trainings as tasks of other schedulers: Kubeflow's TrainJob and SkyPilot's task, as plain data. No torch here.

The machines take configuration and code from an image or from the working directory, not from this machine, so the
task names the configuration as the command line did. Every start is the same command: it goes on where the run stands.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

from flambeau.errors import EXIT_PREEMPTED, UsageError
from flambeau.launch.request import Request, matching, train_devices

MOUNT = "/runs"
"""Where the storage for runs is found on each machine."""


def kubeflow(
    request: Request, training: Sequence[str], *, image: str, claim: str | None, runtime: str, grace: int
) -> dict[str, Any]:
    """A TrainJob of Kubeflow Trainer 2.2 or later (`trainer.kubeflow.org/v1alpha1`).

    The runtime tells torchrun through variables how many nodes and processes there are and where they meet. A pod that
    must leave gets SIGTERM: the training saves.

    Args:
        training: arguments of `flambeau`.
        image: the container's image: the project and Flambeau are in it, the project is its working directory.
        claim: the PersistentVolumeClaim that is mounted at `/runs`.
        runtime: the ClusterTrainingRuntime.
        grace: seconds that a pod has for saving.
    """
    training = [*training, *([] if request.gpus else ["-d", "cpu"])]
    matching(
        "--name", request.name, r"[a-z]([a-z0-9-]{0,48}[a-z0-9])?", "lower-case letters, digits and - (Kubernetes)"
    )
    matching("--runtime", runtime, r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", "the name of a ClusterTrainingRuntime")
    pod: dict[str, Any] = {"terminationGracePeriodSeconds": grace}
    if claim is not None:
        matching("--storage", claim, r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", "the name of a PersistentVolumeClaim")
        pod["volumes"] = [{"name": "runs", "persistentVolumeClaim": {"claimName": claim}}]
        pod["containers"] = [{"name": "node", "volumeMounts": [{"name": "runs", "mountPath": MOUNT}]}]
    jobs = {"replicatedJobs": [{"name": "node", "template": {"spec": {"template": {"spec": pod}}}}]}
    amounts = {"cpu": str(request.cpus_per_node)}
    if request.mebibytes is not None:
        amounts["memory"] = f"{request.mebibytes}Mi"
    if request.gpus:
        amounts["nvidia.com/gpu"] = str(request.gpus)
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": request.name},
        "spec": {
            **({"activeDeadlineSeconds": request.seconds} if request.seconds else {}),
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "ClusterTrainingRuntime",
                "name": runtime,
            },
            "trainer": {
                "image": image,
                "command": ["torchrun", "-m", "flambeau", *training],
                "numNodes": request.nodes,
                "numProcPerNode": request.ranks_per_node,
                "resourcesPerNode": {"requests": amounts, "limits": amounts},
            },
            "runtimePatches": [{"manager": "flambeau/submit", "trainingRuntimeSpec": {"template": {"spec": jobs}}}],
        },
    }


def skypilot(
    request: Request, training: Sequence[str], *, image: str | None, bucket: str | None, gpu: str | None, setup: str
) -> dict[str, Any]:
    """A task of SkyPilot, for `sky jobs launch`: machines that are taken away are replaced, and the run goes on.

    Args:
        training: arguments of `flambeau`.
        image: a container's image, in place of the machine's own system.
        bucket: the storage that is mounted at `/runs`: `s3://bucket/folder`, `gs://...`.
        gpu: the accelerator's name in SkyPilot: `H100`.
        setup: shell commands that make Flambeau and the project's requirements available.
    """
    if request.gpus and gpu is None:
        raise UsageError("SkyPilot chooses machines by the kind of GPU", remedy="--gpu-type H100; `sky gpus list`")
    if request.time is not None:
        raise UsageError(
            "a task of SkyPilot has no time limit",
            remedy="leave out --time; to stop a run by time: callbacks.time_limit.minutes=240",
        )
    resources: dict[str, Any] = {"cpus": f"{request.cpus_per_node}+"}
    if request.mebibytes is not None:
        resources["memory"] = f"{max(1, -(-request.mebibytes // 1024))}+"
    if request.gpus:
        resources["accelerators"] = {matching("--gpu-type", str(gpu), r"[\w.-]+", "a name: H100"): request.gpus}
    if image is not None:
        resources["image_id"] = f"docker:{image}"
    # Besides what SkyPilot knows by itself (machines that are gone): a run that was told to leave has saved.
    resources["job_recovery"] = {"recover_on_exit_codes": [EXIT_PREEMPTED]}
    task: dict[str, Any] = {"name": request.name, "workdir": ".", "num_nodes": request.nodes, "resources": resources}
    if bucket is not None:
        if not re.fullmatch(r"[a-z0-9]+://[^\s]+", bucket):
            raise UsageError(f"--storage {bucket!r} is no address of a bucket", remedy="for example s3://bucket/runs")
        task["file_mounts"] = {MOUNT: {"source": bucket, "mode": "MOUNT_CACHED"}}
    command = [*("python", "-m", "flambeau"), *training, *train_devices(request)]
    if request.nodes == 1:
        return {**task, "setup": setup, "run": shlex.join(command)}
    meeting = '--nodes "$SKYPILOT_NUM_NODES" --node-rank "$SKYPILOT_NODE_RANK" --master "$master:29500"'
    run = f'master=$(head -n 1 <<< "$SKYPILOT_NODE_IPS") && {shlex.join(command)} {meeting}'
    return {**task, "setup": setup, "run": run}
