"""Adversarial training: a generator of samples, and a discriminator that tells them from real ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from flambeau.data import Batch
from flambeau.data.batch import share
from flambeau.errors import UsageError
from flambeau.registry import register
from flambeau.runtime.seeds import derive
from flambeau.training.noise import normal_rows
from flambeau.training.trainer import Trainer


@register.trainer("gan")
class GANTrainer(Trainer):
    """Trains a model with the submodules `generator` and `discriminator` and the attribute `latent_size`.

    The optimizers are `generator` and `discriminator`. The criterion compares the discriminator's outputs with ones for
    real and zeros for generated samples: `torch.nn.BCEWithLogitsLoss` makes it the non-saturating game of Goodfellow et
    al. (2014), `torch.nn.MSELoss` that of least squares (Mao et al., 2017). In an evaluation the outputs are
    `{"generated": ..., "real": ...}`, one generated sample for each real one, from noise that is a function of the
    run's seed and the sample's index.
    """

    def update(self, batch: Batch) -> None:
        """One step of the discriminator and one of the generator, both on the same generated samples."""
        model: Any = self.model
        first, _ = share(batch.global_size, self.world.rank, self.world.size)
        rows = range(first, first + len(batch.inputs))
        generated = model.generator(self.noise(rows, "training", self.state.step))
        loss = self.judge(model, batch.inputs, real=True) + self.judge(model, generated.detach(), real=False)
        self.optimize("discriminator", loss)
        self.optimize("generator", self.judge(model, generated, real=True))

    def judge(self, model: Any, samples: torch.Tensor, *, real: bool) -> torch.Tensor:
        """The criterion's loss of what the discriminator says of `samples`, if it is to take them for `real` or not."""
        if self.criterion is None:
            raise UsageError("the trainer has no criterion", remedy="give one: torch.nn.BCEWithLogitsLoss()")
        outputs = model.discriminator(samples)
        loss: torch.Tensor = self.criterion(outputs, torch.full_like(outputs, float(real)))
        return loss

    def noise(self, rows: Iterable[int], *purpose: int | str) -> torch.Tensor:
        """Standard normal numbers (rows, latent_size): a function of the seed, the purpose and the row's number."""
        model: Any = self.model
        drawn = normal_rows(derive(self.seed, "noise", *purpose), rows, (model.latent_size,))
        return drawn.to(self.device, next(self.model.parameters()).dtype)

    def generate(self, model: Any, rows: Iterable[int]) -> torch.Tensor:
        """What `model` makes of the fixed noise of these rows."""
        with self.precision.autocast():
            samples: torch.Tensor = model.generator(self.noise(rows, "evaluation"))
        return samples

    def evaluation_step(self, model: nn.Module, batch: Batch) -> tuple[Any, torch.Tensor | None, Any]:
        """Generated and real samples, for metrics such as `frechet_distance`."""
        return {"generated": self.generate(model, batch.ids), "real": batch.inputs}, None, batch.size

    def prediction_step(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Samples generated from the inputs, where these are noise (N, latent_size); else one for each input."""
        own: Any = self.model
        if batch.inputs.shape[1:] == (own.latent_size,):
            images: torch.Tensor = model(batch.inputs)
            return images
        return self.generate(model, batch.ids)
