"""PyTorch Ignite."""

from __future__ import annotations

from ignite.engine import Engine, create_supervised_trainer
from ignite.handlers import ProgressBar
from ignite.metrics import RunningAverage
from torch import nn

from benchmarks.tasks import Batch, Work

LIBRARY = "pytorch-ignite"
VARIANTS = {
    "quiet": "`Engine` with a step function of one's own, nothing attached",
    "default": "`create_supervised_trainer`, running loss on a progress bar",
}


def fit(work: Work, variant: str) -> None:
    model, optimizer, criterion = work.model, work.optimizer(), nn.CrossEntropyLoss()
    if variant == "quiet":
        model.train()

        def step(engine: Engine, batch: Batch) -> None:
            inputs, targets = batch
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()

        trainer = Engine(step)
    else:
        trainer = create_supervised_trainer(model, optimizer, criterion)
        RunningAverage(output_transform=lambda loss: loss).attach(trainer, "loss")
        ProgressBar().attach(trainer, ["loss"])
    trainer.run(work.loader(), max_epochs=work.epochs)
