"""What several processes say in order, without one ever waiting for ever."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.processes import together
from support.projects import environment

from flambeau.errors import FlambeauError
from flambeau.insight import in_rank_order, is_main, main_only, print_in_order
from flambeau.runtime.world import current_world


def said() -> str:
    """What a process prints while all say something; the higher ranks are the quicker ones."""
    world = current_world()
    with contextlib.redirect_stdout(io.StringIO()) as output:
        time.sleep(0.05 * (world.size - world.rank))
        print_in_order("of", world.rank, "\nand more", sep="")
        print_in_order("")
    return output.getvalue()


def test_all_that_is_said_is_printed_by_rank_0_in_the_order_of_ranks() -> None:
    first, *others = together(3, said)
    assert others == ["", ""]
    assert first.splitlines() == [
        *(f"[rank {rank}] {line}" for rank in range(3) for line in (f"of{rank}", "and more")),
        *(f"[rank {rank}] " for rank in range(3)),
    ]


def fails_at_the_end() -> str:
    """Rank 1 fails on its way, and says nothing."""
    if current_world().rank == 1:
        return ""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        print_in_order("here", timeout=0.3)
    return output.getvalue()


def test_a_process_that_fails_before_it_says_something_keeps_nobody() -> None:
    first, _, third = together(3, fails_at_the_end)
    assert first.splitlines() == ["[rank 0] here", "[rank 1] (nothing within 0.3 s)", "[rank 2] here"]
    assert third == ""


def take_turns(file: str) -> None:
    world = current_world()
    time.sleep(0.05 * (world.size - world.rank))
    for turn in range(2):
        with in_rank_order(), Path(file).open("a") as log:
            log.write(f"{turn}{world.rank} begins\n")
            log.flush()
            log.write(f"{turn}{world.rank} ends\n")


def test_blocks_come_one_after_the_other(tmp_path: Path) -> None:
    together(3, take_turns, str(tmp_path / "log"))
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line for line in lines if line.startswith("0")] == [
        f"0{rank} {what}" for rank in range(3) for what in ("begins", "ends")
    ]
    assert len(lines) == 12


def one_turn(file: str) -> str:
    world = current_world()
    try:
        with in_rank_order(), Path(file).open("a") as log:
            log.write(f"{world.rank}\n")
            if world.rank == 1:
                raise RuntimeError("within its turn")
    except RuntimeError as error:
        return str(error)
    return "well"


def test_a_process_that_fails_in_its_turn_passes_it_on(tmp_path: Path) -> None:
    assert together(3, one_turn, str(tmp_path / "log")) == ["well", "within its turn", "well"]
    assert (tmp_path / "log").read_text().split() == ["0", "1", "2"]


def late_turn() -> str:
    world, came = current_world(), "left out"
    if world.rank:
        try:
            with in_rank_order(timeout=0.3):
                came = "in"
        except FlambeauError as error:
            came = str(error)
    world.barrier()  # rank 0 holds the messages
    return came


def test_a_turn_that_does_not_come_is_an_error_that_names_who_is_missing() -> None:
    """And whoever comes after is told at once, not after another wait."""
    assert together(3, late_turn)[:2] == ["left out", "rank 1 waited 0.3 s for its turn after rank 0"]


def test_a_process_alone_waits_for_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    """A notebook: `print` is Python's own, before and after."""
    before = builtins.print
    with in_rank_order():
        print_in_order("alone", 1)
    assert capsys.readouterr().out == "alone 1\n"
    assert builtins.print is before
    assert is_main()


def main_ranks() -> list[object]:
    @main_only
    def rank() -> int:
        """Its name and its words stay."""
        return 7

    return [is_main(), rank(), rank.__name__]


def test_main_only_does_nothing_elsewhere() -> None:
    assert together(2, main_ranks) == [[True, 7, "rank"], [False, None, "rank"]]


def test_who_is_main_is_known_before_any_group_is_joined() -> None:
    """From the launcher's environment."""
    code = "from flambeau.insight import is_main; print(is_main())"
    launched = environment({"RANK": "1", "WORLD_SIZE": "2"})
    assert subprocess.check_output([sys.executable, "-c", code], env=launched, text=True) == "False\n"
    alone = {key: value for key, value in environment().items() if key not in ("RANK", "WORLD_SIZE")}
    assert subprocess.check_output([sys.executable, "-c", code], env=alone, text=True) == "True\n"
    assert "RANK" not in os.environ


def test_nothing_of_the_library_replaces_a_builtin() -> None:
    """Every module is imported, and `builtins` is as it was: library functions do not need a launcher's `print`."""
    code = (
        "import builtins, importlib, pkgutil, flambeau\n"
        "before = dict(vars(builtins))\n"
        "for module in pkgutil.walk_packages(flambeau.__path__, 'flambeau.'):\n"
        "    module.name.endswith('__main__') or importlib.import_module(module.name)\n"
        "changed = [name for name, value in vars(builtins).items() if before.get(name, value) is not value]\n"
        "print(changed)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], env=environment(), text=True) == "[]\n"
