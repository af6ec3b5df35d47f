"""The Trainer of Hugging Face's transformers."""

from __future__ import annotations

from typing import Any

import transformers
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.tasks import PreparedBatches, Work

LIBRARY = "transformers"
VARIANTS = {
    "quiet": "no logging, saving, clipping or progress bar",
    "default": "its defaults (clips the gradient's norm to 1), with a constant learning rate",
}


class Module(nn.Module):
    """The model in the shape that the Trainer asks for: keywords in, a dict with the loss out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(inputs)
        return {"loss": self.criterion(logits, labels), "logits": logits}


class NamedSamples(Dataset[dict[str, Any]]):
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        inputs, targets = self.dataset[index]
        return {"inputs": inputs, "labels": targets}


class PreparedTrainer(transformers.Trainer):
    """Takes the prepared batches in place of a DataLoader."""

    prepared: PreparedBatches

    def get_train_dataloader(self) -> Any:
        return [{"inputs": inputs, "labels": targets} for inputs, targets in self.prepared]


def fit(work: Work, variant: str) -> None:
    quiet = {"logging_strategy": "no", "save_strategy": "no", "max_grad_norm": 0.0, "disable_tqdm": True}
    arguments = transformers.TrainingArguments(
        output_dir=str(work.folder),
        num_train_epochs=work.epochs,
        per_device_train_batch_size=work.task.batch_size,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to="none",
        **(quiet if variant == "quiet" else {}),
    )
    kind = transformers.Trainer if work.prepared_steps is None else PreparedTrainer
    trainer = kind(
        model=Module(work.model),
        args=arguments,
        train_dataset=NamedSamples(work.task.dataset()),
        optimizers=(work.optimizer(), None),
    )
    if work.prepared_steps is not None:
        trainer.prepared = PreparedBatches(work.task, work.prepared_steps)
    trainer.train()
