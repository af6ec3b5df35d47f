"""Arithmetic of a run: fp64, fp32, or bf16 and fp16 through autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from flambeau.data import Batch
from flambeau.data.batch import map_tensors

PrecisionName = Literal["fp64", "fp32", "bf16", "fp16"]


class Precision:
    """One precision on one device.

    fp64 casts the model and the floating-point inputs and targets. bf16 and fp16 keep the weights in fp32 and run the
    forward pass under autocast; fp16 also scales the loss (Micikevicius et al., 2018, "Mixed precision training").
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        self.name = name
        self._device_type = device.type
        self._dtype: torch.dtype | None = None
        self._context: AbstractContextManager[object] = nullcontext()
        if name in ("bf16", "fp16"):
            self._dtype = torch.bfloat16 if name == "bf16" else torch.float16
            self._context = self.new_autocast()
        self.scaler = self.make_scaler()

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass and its loss."""
        return self._context

    def new_autocast(self) -> AbstractContextManager[object]:
        """The same, of its own: around code that may enter `autocast` itself."""
        return torch.autocast(self._device_type, dtype=self._dtype) if self._dtype is not None else nullcontext()

    def paused(self) -> AbstractContextManager[object]:
        """Plain arithmetic inside `autocast`, of weights as they are after it: those of 16 bits are cast anew."""
        return _PausedAutocast(self._device_type) if self._dtype is not None else nullcontext()

    def make_scaler(self) -> torch.amp.GradScaler | None:
        """A scaler of one optimizer's losses, for fp16."""
        return torch.amp.GradScaler(self._device_type) if self.name == "fp16" else None

    def cast_model(self, model: nn.Module) -> None:
        if self.name == "fp64":
            model.double()

    def cast(self, batch: Batch) -> Batch:
        if self.name != "fp64":
            return batch

        def widen(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.double() if tensor.is_floating_point() else tensor

        return batch.replace(inputs=map_tensors(widen, batch.inputs), targets=map_tensors(widen, batch.targets))


class _PausedAutocast(torch.autocast):
    """Autocast that is off; at its end, the casts of weights that autocast keeps are forgotten: a step changes them."""

    def __init__(self, device_type: str) -> None:
        super().__init__(device_type, enabled=False)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.clear_autocast_cache()
