"""Functions in place of a class of one's own."""

from __future__ import annotations

from flambeau.errors import UsageError
from flambeau.registry import Function, load_function, register
from flambeau.training.callback import Callback


@register.callback("lambda")
class LambdaCallback(Callback):
    """Functions, or their import paths, in place of a callback's hooks; with the same arguments, the trainer first.

    Each argument is a hook of `flambeau.Callback`, which says when it is called and with what.

    Raises:
        UsageError: none is given, or one cannot be had.

    Example:
        >>> LambdaCallback(on_epoch_end=lambda trainer: print(trainer.epoch, trainer.state.best_score))
    """

    def __init__(
        self,
        *,
        on_setup: Function | None = None,
        on_fit_start: Function | None = None,
        on_epoch_start: Function | None = None,
        on_step_end: Function | None = None,
        on_log: Function | None = None,
        on_validation_start: Function | None = None,
        on_validation_end: Function | None = None,
        on_epoch_end: Function | None = None,
        on_checkpoint: Function | None = None,
        on_fit_end: Function | None = None,
        on_error: Function | None = None,
        on_exit: Function | None = None,
    ) -> None:
        hooks = {
            "on_setup": on_setup,
            "on_fit_start": on_fit_start,
            "on_epoch_start": on_epoch_start,
            "on_step_end": on_step_end,
            "on_log": on_log,
            "on_validation_start": on_validation_start,
            "on_validation_end": on_validation_end,
            "on_epoch_end": on_epoch_end,
            "on_checkpoint": on_checkpoint,
            "on_fit_end": on_fit_end,
            "on_error": on_error,
            "on_exit": on_exit,
        }
        given = {name: function for name, function in hooks.items() if function is not None}
        if not given:
            raise UsageError("callback lambda: no function is given", remedy=f"give one of {', '.join(hooks)}")
        for name, function in given.items():
            # On the object: a hook that is not given is then none that the loop would have to call.
            setattr(self, name, load_function(function, f"callback lambda: {name}"))
