"""PyTorch Lightning."""

from __future__ import annotations

import lightning
import torch
from torch import Tensor, nn

from benchmarks.tasks import Batch, Work

LIBRARY = "lightning"
VARIANTS = {
    "quiet": "`barebones=True`: no logging, checkpoint or progress bar",
    "default": "`Trainer(max_epochs=...)`, the loss logged with `self.log`",
}


class Module(lightning.LightningModule):
    def __init__(self, work: Work, *, logs: bool) -> None:
        super().__init__()
        self.model = work.model
        self.criterion = nn.CrossEntropyLoss()
        self.make_optimizer = work.optimizer
        self.logs = logs

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        inputs, targets = batch
        loss: Tensor = self.criterion(self.model(inputs), targets)
        if self.logs:
            self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer()


def fit(work: Work, variant: str) -> None:
    settings = {"barebones": True} if variant == "quiet" else {"default_root_dir": work.folder}
    trainer = lightning.Trainer(max_epochs=work.epochs, accelerator="cpu", devices=1, **settings)
    trainer.fit(Module(work, logs=variant == "default"), work.loader())
