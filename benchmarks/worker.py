"""The process of one contender: trains what the harness asks for and answers with times.

Started by `benchmarks.harness`; requests and answers are lines of JSON over a pipe of their own, because
standard output is a pseudo-terminal on which engines draw their progress bars as they would for a person.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.clock import Clock, Finished
from benchmarks.tasks import TASKS, Task, Work

WARM_UP_STEPS = 50


def main() -> None:
    contender, variant, task_name, request_fd, answer_fd = sys.argv[1:]
    torch.set_num_threads(1)
    task = TASKS[task_name]()
    with os.fdopen(int(request_fd)) as requests, os.fdopen(int(answer_fd), "w", buffering=1) as answers:
        for line in requests:
            try:
                answer = measure(contender, variant, task, **json.loads(line))
            except BaseException:  # told to the harness, which says so in the table
                answer = {"error": traceback.format_exc()}
            answers.write(json.dumps(answer) + "\n")


def measure(
    contender: str, variant: str, task: Task, *, what: str, steps: int, weights: str | None = None
) -> dict[str, Any]:
    """The seconds and calls of `steps` steps within a fit.

    Args:
        what: "steps" (prepared input, after a warm-up), "calls" (the same with function calls counted), or
            "epochs" (`steps` must then be whole epochs; the end of each and the beginning of the next are in it).
        weights: go on to the fit's own end, tell the loss over some data, and write the weights here (.npy).
    """
    if what == "epochs":
        start, prepared_steps = 10, None
        epochs = steps // task.steps_per_epoch + 1
    else:
        start, prepared_steps = WARM_UP_STEPS, WARM_UP_STEPS + steps + 1
        epochs = 1
    clock = Clock(start, start + steps, count_calls=what == "calls", then_finish=weights is None)
    torch.manual_seed(0)
    model = task.model(clock)
    fit = importlib.import_module(f"benchmarks.contenders.{contender}").fit
    gc.collect()
    with tempfile.TemporaryDirectory(prefix="flambeau-benchmark-") as folder, suppress(Finished):
        fit(Work(task, model, epochs, prepared_steps, Path(folder)), variant)
    return {
        "wall_s": clock.wall_s / steps,
        "cpu_s": clock.cpu_s / steps,
        "calls": clock.calls.total() / steps,
        "loss": final_loss(model, task) if weights else None,
        "weights": save_weights(model, weights) if weights else None,
    }


def final_loss(model: torch.nn.Module, task: Task) -> float:
    """Mean loss over the first samples of the task, to see that a contender did train."""
    model.eval()
    with torch.no_grad():
        outputs = model(task.normalise(task.inputs[:1024]))
        return float(torch.nn.functional.cross_entropy(outputs, task.targets[:1024]))


def save_weights(model: torch.nn.Module, path: str) -> str:
    np.save(path, torch.cat([value.detach().flatten() for value in model.state_dict().values()]).numpy())
    return path


if __name__ == "__main__":
    main()
