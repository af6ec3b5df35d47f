"""Outputs of a trained model for data without targets, and the files that hold them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flambeau.data import ArrayDataset
from flambeau.data.arrays import read_arrays
from flambeau.errors import UsageError
from flambeau.training.evaluation import evaluation_mode
from flambeau.training.trainer import Trainer


@torch.no_grad()
def predict(trainer: Trainer, data: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The model's outputs for each sample of `data`, in order, in evaluation mode.

    Returns:
        Arrays whose first dimension is the samples: `outputs`, or each key of a model that gives a dict.

    Raises:
        UsageError: the model gives neither a tensor nor a dict with one.
    """
    parts: dict[str, list[np.ndarray[Any, Any]]] = {}
    with evaluation_mode(trainer.model):
        for batch in trainer.eval_batches(data):
            with trainer.precision.autocast():
                outputs = trainer.prediction_step(trainer.model, batch)
            named = outputs if isinstance(outputs, Mapping) else {"outputs": outputs}
            for name, value in named.items():
                if isinstance(value, torch.Tensor):
                    value = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
                    parts.setdefault(name, []).append(value.cpu().numpy())
    if not parts:
        raise UsageError("the model's outputs are no tensors, or there are no samples")
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def read_inputs(path: Path) -> ArrayDataset:
    """A file of inputs: .npy with one array, .npz or .safetensors with an entry `inputs`.

    Floating-point inputs become float32; nothing in the file is run.

    Raises:
        UsageError: the file does not exist, is damaged, has another format, or no such entry.
    """
    if not path.is_file():
        raise UsageError(f"--input: {path} does not exist", remedy="give a file, or train, val or test")
    if path.suffix not in (".npy", ".npz", ".safetensors"):
        raise UsageError(f"--input: '{path.suffix}' is no known format", remedy="use .npy, .npz or .safetensors")
    if path.suffix == ".npy":
        try:
            arrays = {"inputs": torch.from_numpy(np.load(path, allow_pickle=False))}
        except (ValueError, TypeError, OSError) as error:
            raise UsageError(f"--input: {path} cannot be read: {error}") from error
    else:
        arrays = read_arrays(path)
    if "inputs" not in arrays:
        raise UsageError(f"--input: {path} has no array 'inputs'", remedy=f"it has {', '.join(arrays) or 'none'}")
    inputs = arrays["inputs"]
    return ArrayDataset(inputs.float() if inputs.is_floating_point() else inputs)


def write_outputs(path: Path, outputs: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write outputs to a .npz, .csv or .jsonl file."""
    if path.suffix == ".npz":
        arrays: dict[str, Any] = dict(outputs)
        np.savez_compressed(path, **arrays)
        return
    flat = {name: values.reshape(len(values), -1) for name, values in outputs.items()}
    with path.open("w", newline="") as file:
        if path.suffix == ".csv":
            columns = [f"{name}[{i}]" for name, values in flat.items() for i in range(values.shape[1])]
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(np.concatenate(list(flat.values()), axis=1).tolist())
            return
        names = list(outputs)
        for rows in zip(*outputs.values(), strict=True):
            file.write(json.dumps({name: row.tolist() for name, row in zip(names, rows, strict=True)}) + "\n")
