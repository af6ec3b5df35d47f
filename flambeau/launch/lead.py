"""What rank 0 does for all processes, and how the others learn what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flambeau.errors import EXIT_FAILED, FlambeauError

if TYPE_CHECKING:
    from flambeau.runtime.world import World


class LedError(FlambeauError):
    """Rank 0 could not do what it does for all; it tells the reason."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.exit_status = status


def lead(world: World, work: Callable[[], Any]) -> Any:
    """What `work()` gives on rank 0 (JSON), on all processes; all have to be here.

    Raises:
        LedError: on the others, if it raised on rank 0.
    """
    if world.size == 1:
        return work()
    answer: dict[str, Any] = {}
    if world.is_main:
        try:
            answer = {"value": work()}
        except BaseException as error:
            status = error.exit_status if isinstance(error, FlambeauError) else EXIT_FAILED
            world.broadcast({"error": f"{type(error).__name__}: {error}", "status": status})
            raise
    answer = world.broadcast(answer)
    if "error" in answer:
        raise LedError(f"rank 0 failed: {answer['error']}", answer["status"])
    return answer["value"]
