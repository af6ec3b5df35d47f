"""One loss, several optimizers: each trains its share of the parameters in the same step."""

from __future__ import annotations

from flambeau.data import Batch
from flambeau.errors import UsageError
from flambeau.registry import register
from flambeau.training.trainer import Trainer


@register.trainer("joint")
class JointTrainer(Trainer):
    """Trains one model by one loss with several optimizers, such as Muon for matrices and AdamW for the rest.

    Each has its groups, schedule and clipping; all make a step from the same backward pass, or none does.
    """

    def update(self, batch: Batch) -> None:
        if self.named is None:
            raise UsageError("the trainer `joint` takes several optimizers", remedy="give the section `optimizers`")
        self.named.optimize_all(self.training_step(batch), self.units(batch))
