"""Read what a language model writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from annotated_types import Ge

from flambeau.distributed.sharding import is_sharded_model, reshard
from flambeau.errors import UsageError
from flambeau.registry import register
from flambeau.runtime.seeds import derive, isolated
from flambeau.training.callback import Callback
from flambeau.training.evaluation import evaluation_mode
from flambeau.training.trainer import Trainer


@register.callback("sample_text")
class SampleText(Callback):
    """At each validation, have the model go on with a text; what it writes goes to the log and the trackers.

    For models with a method `generate` (`gpt`) on data with a vocabulary (`text`). What is drawn is a function of the
    seed and the step; the run's own random numbers stay as they are.

    Args:
        prompt: the text to go on with.
        count: tokens to add.
        temperature: below 1 likelier tokens are drawn more often; 0 takes the likeliest.
        top_k: draw among the k likeliest tokens only.
        every: validations between two samples.
    """

    def __init__(
        self,
        prompt: str = "\n",
        count: Annotated[int, Ge(1)] = 200,
        temperature: Annotated[float, Ge(0)] = 0.8,
        top_k: Annotated[int, Ge(1)] | None = None,
        every: Annotated[int, Ge(1)] = 1,
    ) -> None:
        if not prompt:
            raise UsageError("callbacks.sample_text.prompt is empty", remedy="give one token at least, such as '\\n'")
        self.prompt = prompt
        self.count = count
        self.temperature = temperature
        self.top_k = top_k
        self.every = every
        self._validations = 0

    def on_fit_start(self, trainer: Trainer) -> None:
        if not callable(getattr(trainer.model, "generate", None)):
            raise UsageError(f"callbacks.sample_text: {type(trainer.model).__name__} has no method `generate`")
        if _vocabulary(trainer) is None:
            raise UsageError(
                "callbacks.sample_text: the training data has no `vocabulary` to write with",
                remedy="give the dataset one, with encode(text) and decode(tokens), as flambeau.data.text has",
            )

    def on_validation_end(self, trainer: Trainer, scores: Mapping[str, float]) -> None:
        self._validations += 1
        # All processes write, and the same, where the model lies in pieces: none can call it alone.
        together = is_sharded_model(trainer.model)
        if self._validations % self.every or not (trainer.world.is_main or together):
            return
        model: Any = trainer.model
        vocabulary = _vocabulary(trainer)
        prompt = vocabulary.encode(self.prompt)[None].to(trainer.device)
        seed = derive(trainer.seed, "sample_text", trainer.state.step)
        with trainer.paused(), isolated(seed), evaluation_mode(model), trainer.precision.autocast():
            tokens = model.generate(prompt, self.count, temperature=self.temperature, top_k=self.top_k)
        if together:
            reshard(model)
        if trainer.world.is_main:
            text = vocabulary.decode(tokens[0].cpu())
            trainer.recorder.say(f"text written at step {trainer.state.step}:\n{text}")
            for tracker in trainer.recorder.trackers:
                tracker.log_text("val/text", text, trainer.state.step)

    def state_dict(self) -> dict[str, int]:
        return {"validations": self._validations}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._validations = state["validations"]


def _vocabulary(trainer: Trainer) -> Any:
    """The vocabulary of the training data, or of what it is a part of."""
    data = trainer.train_data
    while data is not None and not hasattr(data, "vocabulary"):
        data = getattr(data, "dataset", None)
    return None if data is None else data.vocabulary
