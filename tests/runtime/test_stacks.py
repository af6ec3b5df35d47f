"""From where the processes are, the report says which of them the others wait for."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from flambeau.runtime import stacks
from flambeau.runtime.stacks import Frame, Sighting, conclude, name_ranks, report

TORCH = str(Path(torch.__file__).parent)
FLAMBEAU = str(Path(stacks.__file__).parents[1])
MINE = Frame("/project/hooks.py", 7, "on_step_end", "self.count()")
LOOP = Frame(f"{FLAMBEAU}/training/trainer.py", 200, "fit", "self.update(batch)")
REDUCE = Frame(f"{TORCH}/distributed/distributed_c10d.py", 3252, "all_reduce", "work.wait()")
BARRIER = Frame(f"{TORCH}/distributed/distributed_c10d.py", 5356, "barrier", "work.wait()")
BACKWARD = Frame(f"{TORCH}/autograd/graph.py", 979, "_engine_run_backward", "return ...")


def at(*frames: Frame, position: str = "step 3") -> Sighting:
    return Sighting(position, 10.0, stack=[LOOP, *frames])


@pytest.mark.parametrize(
    ("ranks", "words"),
    [([3], "rank 3"), ([0, 1], "ranks 0-1"), ([5, 0, 2, 3, 4], "ranks 0, 2-5"), ([0, 2], "ranks 0, 2")],
)
def test_ranks_are_named_shortly(ranks: list[int], words: str) -> None:
    """Neighbours as one."""
    assert name_ranks(ranks) == words


def test_equal_stacks_are_shown_once() -> None:
    """Thousands of processes may wait in the same line."""
    seen = {rank: at(BACKWARD) for rank in range(1000)} | {17: at(MINE)}
    text = report(seen, {})
    assert text.count("graph.py") == 1
    assert text.startswith("Ranks 0-16, 18-999: step 3, waits in the backward pass\n")
    assert "Rank 17: step 3\n" in text


def test_the_users_lines_are_marked() -> None:
    """Torch's and Flambeau's are not."""
    marked = [line for line in report({0: at(MINE, BARRIER)}, {}).split("\n") if line.startswith("  >")]
    assert marked == ["  > /project/hooks.py:7 in on_step_end: self.count()"]


def test_a_process_that_is_elsewhere_is_missing() -> None:
    """By its line."""
    assert conclude({0: at(BACKWARD), 1: at(MINE), 2: at(BACKWARD)}, []) == (
        "Missing: rank 1 at /project/hooks.py:7 in on_step_end; "
        "not in the collective operation that the others wait in."
    )


def test_operations_that_not_all_have_come_to_are_named() -> None:
    """The one that somebody called alone, and the one of the others."""
    words = conclude({0: at(MINE, BARRIER), 1: at(BACKWARD), 2: at(BACKWARD)}, [])
    assert "rank 0 in barrier at /project/hooks.py:7 in on_step_end; ranks 1-2 in the backward pass at" in words
    assert "`if rank == 0:`" in words


def test_a_silent_process_counts_before_all_else() -> None:
    """Where the others wait follows from it."""
    seen = {0: at(MINE, BARRIER), 1: at(BACKWARD)}
    assert conclude(seen, [2, 3]).startswith("Missing: ranks 2-3; they are stopped, dead, or on a machine")
    assert "Rank 2: no sign of life; last heard of at step 2" in report(seen, {2: "step 2"})


def test_the_same_place_for_all_says_to_look_at_the_network() -> None:
    """No process is to blame."""
    words = conclude({0: at(MINE, REDUCE), 1: at(MINE, REDUCE)}, [])
    assert words.startswith("All are at the same place: ranks 0-1 in all_reduce at /project/hooks.py:7 in on_step_end.")
    assert words.endswith("Look at the network and the devices.")


def test_different_places_of_which_none_is_known_to_wait_are_listed() -> None:
    """On an accelerator the host may wait in any line."""
    words = conclude({0: at(MINE), 1: at()}, [])
    assert words.startswith("They are at different places: rank 0 at /project/hooks.py:7 in on_step_end; rank 1 at ")


def test_a_sighting_survives_the_way_through_the_board() -> None:
    """As JSON."""
    sighting = Sighting("step 3", 1.5, True, [MINE, BARRIER])
    assert Sighting.from_json(sighting.to_json()) == sighting


def test_the_stack_is_the_main_threads_whoever_asks() -> None:
    """Innermost line last."""
    found: list[list[Frame]] = []
    thread = threading.Thread(target=lambda: found.append(stacks.main_stack()))
    thread.start()
    thread.join()
    functions = [frame.function for frame in found[0]]
    assert "test_the_stack_is_the_main_threads_whoever_asks" in functions
    assert functions[-1] in ("join", "_wait_for_tstate_lock", "wait", "start")
    assert next(frame for frame in found[0] if frame.function.startswith("test_the_stack")).is_users


def test_a_debugger_is_seen_on_the_stack() -> None:
    """By the module that runs."""
    assert not stacks.in_debugger()
    code = compile("def stand():\n    return in_debugger()\nstanding = stand()", "pdb.py", "exec")
    namespace = {"__name__": "pdb", "in_debugger": stacks.in_debugger}
    exec(code, namespace)
    assert namespace["standing"] is True


def test_torchs_own_frames_are_recognised() -> None:
    """A rename in torch would make the report blind."""
    assert sys.modules[dist.barrier.__module__].__file__ is not None
    assert REDUCE.file == str(Path(dist.distributed_c10d.__file__))
    assert BACKWARD.file == str(Path(torch.autograd.graph.__file__))
    assert hasattr(torch.autograd.graph, "_engine_run_backward")
