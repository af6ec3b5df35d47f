"""The data sets that a trainer evaluates on, each with what feeds it, kept from one evaluation to the next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flambeau.data import Batch, EvalFeeder

if TYPE_CHECKING:
    from flambeau.training.trainer import Trainer


class EvalData:
    """Feeders of evaluation data, made when they are first asked for."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._feeders: dict[tuple[int, int | None], tuple[Any, EvalFeeder]] = {}

    def batches(self, data: Any, samples: int | None = None) -> Iterator[Batch]:
        """The batches of `data` that this process has, each with its number among those of all processes.

        Args:
            samples: take the first ones alone.
        """
        trainer = self._trainer
        key = id(data), samples
        _, feeder = self._feeders.get(key, (None, None))
        if feeder is None:
            feeder = self._feed(data, samples)
            self._feeders[key] = data, feeder  # `data` is held, so that no other gets its id
        bar = trainer.recorder.bar
        for done, (number, batch) in enumerate(zip(feeder.numbers(), feeder.batches(), strict=False)):
            bar.evaluating(done, feeder.num_batches)
            if trainer.team is not None:
                trainer.team.beat(f"batch {number} of an evaluation after step {trainer.state.step}")
            batch = trainer.precision.cast(batch)
            batch.number = number
            trainer.at_work = ("evaluation", batch)
            yield batch

    def close(self) -> None:
        """End the worker processes, if any."""
        for _, feeder in self._feeders.values():
            feeder.close()
        self._feeders.clear()

    def _feed(self, data: Any, samples: int | None) -> EvalFeeder:
        trainer, loader = self._trainer, self._trainer.loader
        micro = max(trainer.batch_size // (trainer.accumulate * trainer.world.size), 1)
        return EvalFeeder(
            data,
            batch_size=loader.eval_batch_size or 4 * micro,
            workers=loader.workers,
            prefetch=loader.prefetch,
            device=trainer.device,
            transform=trainer.eval_transform,
            batch_transform=trainer.batch_transform,
            seed=trainer.seed,
            device_resident=loader.device_resident,
            rank=trainer.world.rank,
            ranks=trainer.world.size,
            samples=samples,
            collate=trainer.collate,
        )
