"""Data of one's own in array files: npz or safetensors."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Interval

from flambeau.data.in_memory import ArrayDataset
from flambeau.data.module import DataModule
from flambeau.data.splits import split
from flambeau.data.transforms import standardize_by
from flambeau.errors import UsageError
from flambeau.registry import register

Arrays = dict[str, torch.Tensor]


@register.data("arrays")
class ArrayFiles(DataModule):
    """Arrays from npz or safetensors files, one row a sample.

    Args:
        train: the file of the training samples.
        val, test: files of the validation and test samples; without one, a part of the training samples is
            held out if its fraction is above 0.
        inputs: name of the input array in the files, or a list of names: the input is then a dict.
        targets: name of the target array; null if there is none.
        dtype: what floating-point arrays are converted to. Integer targets become int64.
        val_fraction: share of the training samples for validation, if `val` is not given.
        test_fraction: likewise for the test.
        stratified: hold out the same share of each class.
        standardize: give each feature of inputs (N, F) the mean 0 and the standard deviation 1 of the training samples,
            a batch at a time.
        seed: what the split is a function of.

    Files are read without pickle, so an npz file with Python objects is refused.
    """

    num_classes: int
    """One more than the greatest target, where targets are whole numbers, one a sample."""
    input_shape: tuple[int, ...]
    num_features: int
    in_channels: int
    image_size: int
    target_mean: float
    """Of the training targets, where they are not whole numbers: for a model's `output_mean`."""
    target_std: float
    """Likewise, for a model's `output_scale` and the criterion's `scale`."""

    def __init__(
        self,
        train: Path,
        val: Path | None = None,
        test: Path | None = None,
        inputs: str | Sequence[str] = "inputs",
        targets: str | None = "targets",
        dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32",
        val_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
        test_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
        stratified: bool = False,
        standardize: bool = False,
        seed: int = 0,
    ) -> None:
        def read(path: Path) -> ArrayDataset:
            return _dataset(Path(path), inputs, targets, getattr(torch, dtype))

        self.train = read(train)
        files = [self.train, *(read(path) for path in (val, test) if path is not None)]
        labels = self.train.targets
        if stratified and not _are_classes(labels):
            raise UsageError("data.stratified needs targets that are whole numbers, one a sample")
        if _are_classes(labels):
            self.num_classes = 1 + max(int(file.targets.max()) for file in files)
        cut = (val_fraction if val is None else 0.0, test_fraction if test is None else 0.0)
        rest, val_rows, test_rows = split(len(self.train), cut, seed, labels=labels.numpy() if stratified else None)
        whole, others = self.train, iter(files[1:])
        self.val = next(others) if val is not None else whole.subset(val_rows) if len(val_rows) else None
        self.test = next(others) if test is not None else whole.subset(test_rows) if len(test_rows) else None
        if len(rest) < len(whole):
            self.train = whole.subset(rest)
        if isinstance(whole.inputs, torch.Tensor):
            self.input_shape = tuple(whole.inputs.shape[1:])
            self.num_features = whole.inputs[:1].numel()
            if self.input_shape:
                self.in_channels, self.image_size = self.input_shape[0], self.input_shape[-1]
        samples, numbers = self.train.fetch(torch.arange(len(self.train)))
        if numbers is not None and numbers.is_floating_point():
            wide = numbers.double().numpy()  # numpy's sums do not depend on the number of threads
            self.target_mean, self.target_std = float(wide.mean()), float(wide.std())
        if standardize:
            if not isinstance(samples, torch.Tensor) or samples.dim() != 2 or not samples.is_floating_point():
                raise UsageError(
                    "data.standardize needs inputs of floating-point numbers, one row of features a sample"
                )
            self.batch_transform = standardize_by(samples.double().numpy(), samples.dtype)


def _dataset(path: Path, inputs: str | Sequence[str], targets: str | None, dtype: torch.dtype) -> ArrayDataset:
    arrays = read_arrays(path)

    def find(name: str) -> torch.Tensor:
        if name not in arrays:
            near = get_close_matches(name, arrays, n=1)
            has = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(sorted(arrays)) or 'none'}"
            raise UsageError(f"{path} has no array '{name}'", remedy=has)
        array = arrays[name]
        return array.to(dtype) if array.is_floating_point() else array

    data = find(inputs) if isinstance(inputs, str) else {name: find(name) for name in inputs}
    answers = None if targets is None else find(targets)
    if answers is not None and not answers.is_floating_point() and answers.dtype != torch.bool:
        answers = answers.to(torch.int64)
    return ArrayDataset(data, answers)


def _are_classes(targets: torch.Tensor | None) -> bool:
    return targets is not None and targets.dim() == 1 and targets.dtype == torch.int64


def read_arrays(path: Path) -> Arrays:
    """All arrays of an npz or safetensors file, by name. Nothing in the file is run."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UsageError(f"{path} is not a whole safetensors file: {error}") from error
    if path.suffix != ".npz":
        raise UsageError(f"{path} ends neither in .npz nor in .safetensors")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    except (ValueError, TypeError, zipfile.BadZipFile, EOFError) as error:
        raise UsageError(
            f"{path} cannot be read: {error}",
            remedy="save numeric arrays only: numpy.savez(path, inputs=...)",
        ) from error
