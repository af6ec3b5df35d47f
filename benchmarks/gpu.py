"""`python -m benchmarks.gpu`: Flambeau beside the hand-written loop on one CUDA device.

GPT-2 small (124 M parameters, bf16, compiled) and ResNet-50 (bf16, channels last), in tokens or images a second
and MFU; and a run of Flambeau in which torch raises an error at any host-device synchronisation of the steady
step. Without a CUDA device it says so and leaves with status 0.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.engines import print_table
from benchmarks.gpt import GPT, TokenCrossEntropy
from flambeau import ArrayDataset, Batch, Callback, Trainer
from flambeau.models import ResNet
from flambeau.tracking.tensorboard import TensorBoardTracker

PEAK_BF16_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Dense bf16 matrix products a second by part of the device's name, from its maker's data sheet."""

Optimize = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class GpuTask:
    """One model with its data, already on the device as both loops keep it."""

    name: str
    model: Callable[[], nn.Module]
    criterion: nn.Module
    optimizer: Optimize
    inputs: Tensor
    targets: Tensor
    batch_size: int
    units_per_sample: int
    unit: str
    flops_per_unit: float
    """Of forward and backward, without recomputation."""
    compiled: bool
    prepare: Callable[[Tensor], Tensor]
    """A batch of `inputs` as the model takes it."""


def gpt(batch_size: int, device: torch.device, **shape: int) -> GpuTask:
    """Random tokens; FLOPs a token by Chowdhery et al. (2022), appendix B: 6 N + 12 L H Q T."""
    layers, width, context = shape.get("layers", 12), shape.get("width", 768), shape.get("context", 1024)
    vocabulary = shape.get("vocabulary", 50304)
    block = 12 * width**2 + 13 * width  # weights and biases of attention, MLP and norms
    weights = layers * block + vocabulary * width
    tokens = torch.randint(vocabulary, (batch_size * 32, context + 1), device=device)
    return GpuTask(
        name=f"GPT, {weights / 1e6:.0f} M parameters, {batch_size} x {context} tokens",
        model=lambda: GPT(**shape),
        criterion=TokenCrossEntropy(),
        optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, fused=True),
        inputs=tokens[:, :-1].contiguous(),
        targets=tokens[:, 1:].contiguous(),
        batch_size=batch_size,
        units_per_sample=context,
        unit="tokens",
        flops_per_unit=6 * weights + 12 * layers * width * context,
        compiled=True,
        prepare=lambda batch: batch,
    )


def resnet50(batch_size: int, device: torch.device, size: int = 224) -> GpuTask:
    """Random images of bytes; 4.1 G multiply-adds forward at 224 x 224 (He et al., 2016), twice that backward."""
    count = batch_size * 8

    def normalise(images: Tensor) -> Tensor:
        return images.to(memory_format=torch.channels_last).float().div_(127.5).sub_(1)

    return GpuTask(
        name=f"ResNet-50, {batch_size} images of {size} x {size}",
        model=lambda: channels_last(ResNet(depth=50, num_classes=1000)),
        criterion=nn.CrossEntropyLoss(),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True),
        inputs=torch.randint(256, (count, 3, size, size), dtype=torch.uint8, device=device),
        targets=torch.randint(1000, (count,), device=device),
        batch_size=batch_size,
        units_per_sample=1,
        unit="images",
        flops_per_unit=3 * 2 * 4.1e9 * (size / 224) ** 2,
        compiled=False,
        prepare=normalise,
    )


def channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class Stretch:
    """Times the steps from `start` to `stop`, the device's work included; may forbid synchronisation in between."""

    def __init__(self, start: int, stop: int, *, forbid_sync: bool = False) -> None:
        self.start, self.stop, self.forbid_sync = start, stop, forbid_sync
        self.seconds = float("nan")

    def after_step(self, step: int) -> None:
        if step == self.start:
            torch.cuda.synchronize()
            self._began = time.perf_counter()
            if self.forbid_sync:
                torch.cuda.set_sync_debug_mode("error")
        elif step == self.stop:
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self._began


class StretchCallback(Callback):
    """A stretch within a run of Flambeau."""

    def __init__(self, stretch: Stretch) -> None:
        self.stretch = stretch

    def on_step_end(self, trainer: Trainer) -> None:
        self.stretch.after_step(trainer.state.step)


def by_hand(task: GpuTask, stretch: Stretch, device: torch.device) -> None:
    """The good loop: data on the device, one index a batch, the loss never read."""
    model = task.model().to(device).train()
    optimizer = task.optimizer(model)
    forward: Any = torch.compile(model) if task.compiled else model
    for step, rows in enumerate(orders(task, stretch.stop, device), start=1):
        inputs, targets = task.prepare(task.inputs[rows]), task.targets[rows]
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = task.criterion(forward(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        stretch.after_step(step)


def orders(task: GpuTask, steps: int, device: torch.device) -> Iterator[Tensor]:
    """The rows of each batch, a new order every epoch."""
    done = 0
    while True:
        for rows in torch.split(torch.randperm(len(task.targets), device=device), task.batch_size):
            if done == steps:
                return
            done += 1
            yield rows


def by_flambeau(task: GpuTask, stretch: Stretch, device: torch.device, **options: Any) -> None:
    """A run as it ships, in a run folder; checkpoints are left out, because the stretch is far shorter than
    the time between two."""
    with tempfile.TemporaryDirectory(prefix="flambeau-benchmark-") as folder:
        model = task.model().to(device)
        Trainer(
            model,
            ArrayDataset(task.inputs, task.targets),
            task.criterion,
            task.optimizer(model),
            callbacks=[StretchCallback(stretch)],
            trackers=lambda run_dir, step: [TensorBoardTracker(run_dir=run_dir, resume_step=step)],
            batch_transform=lambda batch: prepared(task, batch),
            run_dir=Path(folder) / "run",
            device=device,
            steps=stretch.stop,
            batch_size=task.batch_size,
            precision="bf16",
            compile=task.compiled,
            every_epochs=None,
            **options,
        ).fit()


def prepared(task: GpuTask, batch: Batch) -> Batch:
    return batch.replace(inputs=task.prepare(batch.inputs), targets=batch.targets)


WAYS: dict[str, Callable[[GpuTask, Stretch, torch.device], None]] = {
    "by hand": by_hand,
    "Flambeau": by_flambeau,
    "Flambeau, `deterministic=False`": lambda *given: by_flambeau(*given, deterministic=False),
}


def compare(task: GpuTask, device: torch.device, *, warm_up: int, steps: int, rounds: int) -> None:
    """Print a table: every way in turns, and the median of each."""
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, run in WAYS.items():
            torch.manual_seed(0)
            stretch = Stretch(warm_up, warm_up + steps)
            run(task, stretch, device)
            rates[way].append(steps * task.batch_size * task.units_per_sample / stretch.seconds)
    peak = next((flops for part, flops in PEAK_BF16_FLOPS.items() if part in device_name(device)), None)
    lines = []
    for way, values in rates.items():
        rate = statistics.median(values)
        ratio = statistics.median(mine / theirs for mine, theirs in zip(values, rates["by hand"], strict=True))
        mfu = f"{rate * task.flops_per_unit / peak:.1%}" if peak else "(peak of this device unknown)"
        lines.append([way, f"{rate:,.0f}", f"{min(values):,.0f} to {max(values):,.0f}", f"{ratio:.3f}", mfu])
    print(f"### {task.name}: {steps} steps, {rounds} rounds\n")
    print_table(["", f"{task.unit} a second", "least and greatest", "ratio", "MFU"], lines)


def judge_synchronisation(task: GpuTask, device: torch.device, *, warm_up: int, steps: int) -> None:
    """A run in which torch raises at any synchronisation; it logs before and after the stretch, not within it."""
    stretch = Stretch(warm_up, warm_up + steps, forbid_sync=True)
    try:
        by_flambeau(task, stretch, device, log_every=warm_up + steps)
        print(f"{task.name}: no host-device synchronisation in {steps} steady steps\n")
    except RuntimeError as error:
        torch.cuda.set_sync_debug_mode("default")
        print(f"{task.name}: a steady step waits for the device: {error}\n")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100, help="timed steps of each run (default: 100)")
    parser.add_argument("--gpt-batch", type=int, default=32, help="sequences of 1,024 tokens (default: 32)")
    parser.add_argument("--resnet-batch", type=int, default=256, help="images (default: 256)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: there is no CUDA device here, so nothing was measured")
        return
    device = torch.device("cuda", 0)
    torch.set_float32_matmul_precision("high")
    print(f"{device_name(device)}, torch {torch.__version__}, CUDA {torch.version.cuda}\n")
    for task in (gpt(arguments.gpt_batch, device), resnet50(arguments.resnet_batch, device)):
        compare(task, device, warm_up=20, steps=arguments.steps, rounds=arguments.rounds)
        judge_synchronisation(task, device, warm_up=20, steps=arguments.steps)


if __name__ == "__main__":
    main()
